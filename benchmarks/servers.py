"""The servers that are compared: how each is started, and with which settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dialects import INVOCATIONS, NATIVE, OPEN_INFERENCE, ROWS, Dialect
from benchmarks.environments import program
from benchmarks.ingress import Launch, application, registry_serve
from benchmarks.places import REGISTRY_URI, REPOSITORY, WORK
from benchmarks.processes import free_port
from benchmarks.registry import artifacts

_PEERS = REPOSITORY / "benchmarks" / "peers"


@dataclass(frozen=True)
class Server:
    """A server that can be measured.

    Attributes:
        name: on the command line and in the results.
        title: in tables and charts.
        settings: what differs from its defaults, in words.
        launch: given a model's name and a port.
        dialects: how to ask it, by model; a model that is missing is not measured.
        environment: the one of ``environments.PACKAGES`` that it needs.
        many_rows: whether one request may hold many rows.
    """

    name: str
    title: str
    settings: str
    launch: Callable[[str, int], Launch]
    dialects: Mapping[str, Dialect]
    environment: str | None = None
    many_rows: bool = True


def _on_ray(builder: str) -> Callable[[str, int], Launch]:
    return lambda model, port: application(builder, model, port)


def _mlflow(model: str, port: int) -> Launch:
    served = [program("mlflow", "mlflow"), "models", "serve", "--model-uri", str(artifacts(model))]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return Launch([*served, *options], _activated("mlflow"))


def _mlserver(batch: int) -> Callable[[str, int], Launch]:
    def launch(model: str, port: int) -> Launch:
        folder = WORK / f"mlserver-{model}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": free_port(),
            "metrics_port": free_port(),
            "parallel_workers": 0,
            "access_log": False,
            "debug": False,
        }
        served = {
            "name": model,
            "implementation": "mlserver_mlflow.MLflowRuntime",
            "parameters": {"uri": str(artifacts(model))},
            "max_batch_size": batch,
            "max_batch_time": 0.001 if batch else 0.0,
        }
        Path(folder, "settings.json").write_text(json.dumps(settings))
        Path(folder, "model-settings.json").write_text(json.dumps(served))
        return Launch([program("mlserver", "mlserver"), "start", str(folder)], _activated("mlserver"))

    return launch


def _litserve(model: str, port: int) -> Launch:
    script = str(_PEERS / "litserve_server.py")
    return Launch([program("litserve"), script, str(artifacts(model)), str(port)], _activated("litserve"))


def _bentoml(*, batching: bool) -> Callable[[str, int], Launch]:
    def launch(model: str, port: int) -> Launch:
        served = [program("bentoml", "bentoml"), "serve", "bentoml_service:Predict", "--working-dir", str(_PEERS)]
        variables = {
            "BENCHMARK_MODEL": str(artifacts(model)),
            "BENCHMARK_BATCHING": str(int(batching)),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        return Launch([*served, "--host", "127.0.0.1", "--port", str(port)], variables | _activated("bentoml"))

    return launch


def _activated(environment: str) -> dict[str, str]:
    """Return the variables under which an environment's programs find each other."""
    return {
        "PATH": f"{WORK / environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": str(WORK / environment),
        "MLFLOW_TRACKING_URI": REGISTRY_URI,
        "OMP_NUM_THREADS": "1",
    }


def _both(dialect: Dialect) -> dict[str, Dialect]:
    return {"text": dialect, "iris": dialect}


_ALL = [
    Server(
        "ours",
        "registry_serve",
        "registry-serve run: HAProxy and Ray's throughput settings; one replica",
        registry_serve,
        _both(NATIVE),
    ),
    Server(
        "empty-fastapi",
        "empty FastAPI on Ray Serve",
        "the same cluster and proxy; checks the row with pydantic, answers a constant",
        _on_ray("benchmarks.apps.empty:fastapi"),
        {"text": NATIVE},
        many_rows=False,
    ),
    Server(
        "empty-asgi",
        "empty ASGI on Ray Serve",
        "the same cluster and proxy; reads the body, answers a constant",
        _on_ray("benchmarks.apps.empty:asgi"),
        {"text": NATIVE},
        many_rows=False,
    ),
    Server(
        "straightforward",
        "straightforward Ray Serve",
        "the same cluster and proxy; load_model in a multiplexed loader, predict in the endpoint",
        _on_ray("benchmarks.apps.straightforward:build"),
        {"text": NATIVE},
        many_rows=False,
    ),
    Server("mlflow", "mlflow models serve", "--workers 1 --env-manager local", _mlflow, _both(INVOCATIONS), "mlflow"),
    Server(
        "mlserver",
        "MLServer",
        "parallel_workers 0, access log and debug off, /invocations",
        _mlserver(0),
        _both(INVOCATIONS),
        "mlserver",
    ),
    Server(
        "mlserver-batching",
        "MLServer, batching",
        "the same, /v2 with adaptive batching: 64 requests or 1 ms; it cannot encode what the text model answers",
        _mlserver(64),
        {"iris": OPEN_INFERENCE},
        "mlserver",
    ),
    Server(
        "litserve",
        "LitServe",
        "one worker, batches of at most 64 waiting requests, no timer",
        _litserve,
        _both(ROWS),
        "litserve",
    ),
    Server(
        "bentoml",
        "BentoML",
        "one worker, access log off",
        _bentoml(batching=False),
        _both(ROWS),
        "bentoml",
    ),
    Server(
        "bentoml-batching",
        "BentoML, batching",
        "the same, with adaptive batching",
        _bentoml(batching=True),
        _both(ROWS),
        "bentoml",
    ),
]
SERVERS = {server.name: server for server in _ALL}
