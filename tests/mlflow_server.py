"""A real MLflow for tests: a server with a SQLite database, and small models to register."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

from registry_serve.launch import free_ports

DOUBLE = ModelSignature(Schema([ColSpec("double", "x")]), Schema([ColSpec("double", "x")]))
TEXT = ModelSignature(Schema([ColSpec("string", "x")]), Schema([ColSpec("string", "x")]))


def free_port() -> int:
    """Return a port on which nobody listens, and that nobody gets who asks for any."""
    return free_ports([0])[0]


@contextmanager
def made_global(uri: str) -> Iterator[None]:
    """Let MLflow's module functions, which know global addresses only, work at one; started processes inherit none.

    The experiment that somebody has set stays set in this process, wherever it was: whoever logs names another.
    """
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID")
    before = {name: os.environ.get(name) for name in names}
    uris = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uris[0])
        mlflow.set_registry_uri(uris[1])
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Echo(mlflow.pyfunc.PythonModel):
    """Answers what it is given."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return model_input


class Place:
    """Somewhere models can be registered: a database file behind a URI that clients use."""

    def __init__(self, uri: str, database: Path, artifacts: Path) -> None:
        self.uri = uri
        self.database = database
        self.artifacts = artifacts

    @property
    def client(self) -> MlflowClient:
        """Return a client of MLflow's own."""
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def register(self, name: str, *, python_model: Any = None, signature: Any = DOUBLE, **log_model: Any) -> str:
        """Log a model and register it; return its version. ``signature=None`` lets MLflow infer one, or none."""
        with made_global(self.uri):
            if mlflow.get_experiment_by_name("tests") is None:
                location = None if self.uri.startswith("http") else str(self.artifacts)
                mlflow.create_experiment("tests", artifact_location=location)
            mlflow.set_experiment("tests")
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=python_model or Echo(),
                registered_model_name=name,
                signature=signature,
                pip_requirements=["mlflow"],
                **log_model,
            )
        return str(logged.registered_model_version)

    def files_of(self, name: str, version: str) -> Path:
        """Return the directory where the version's files lie on this machine."""
        uri = self.client.get_model_version_download_uri(name, version)
        return Path(uri.replace("mlflow-artifacts:", str(self.artifacts)))

    def set_status(self, name: str, version: str, status: str) -> None:
        """Write a version's status, as a registry does that is still copying it."""
        self.write("UPDATE model_versions SET status = ? WHERE name = ? AND version = ?", status, name, version)

    def write(self, statement: str, *values: str) -> None:
        """Change what no client can change, in the database itself."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(statement, values)


def embedded(directory: Path) -> Place:
    """Return a registry without a server: a SQLite file that clients open themselves."""
    directory.mkdir(parents=True, exist_ok=True)
    return Place(f"sqlite:///{directory}/mlflow.db", directory / "mlflow.db", directory / "artifacts")


class MlflowServer(Place):
    """``mlflow server`` on a free loopback port, with one worker, its files in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        super().__init__(f"http://127.0.0.1:{self.port}", directory / "mlflow.db", directory / "artifacts")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is healthy; one that runs is left alone."""
        if self._process is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"),
                    *("--artifacts-destination", str(self.artifacts)),
                ],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                # Its workers are processes of their own: as one group they can be stopped together.
                start_new_session=True,
                # Without its job runners it has two processes instead of ten and starts in half the time.
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
            )
        deadline = time.monotonic() + 90
        while not self._is_healthy():
            assert self._process.poll() is None, (self.directory / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.directory / "server.log").read_text()[-3000:]
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and wait for that."""
        if self._process is None:
            return
        for sign in (signal.SIGCONT, signal.SIGKILL):
            self._signal(sign)
        self._process.wait(30)
        self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it accept connections and answer nothing."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, sign: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, sign)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@functools.cache
def shared_server() -> MlflowServer:
    """Return the one server of this test run, started on first use: starting one takes many seconds.

    A test that stops it starts it again; models of its own name are all a test may rely on.
    """
    directory = Path(tempfile.mkdtemp(prefix="registry-serve-tests-"))
    server = MlflowServer(directory)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(server.stop)  # the last registered is the first to run
    server.start()
    return server
