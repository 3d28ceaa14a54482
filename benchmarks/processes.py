"""Servers as processes: started on free ports, ended with everything that they started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.places import LOGS, REPOSITORY
from registry_serve.launch import free_ports

#: Marks what a measurement started. Ray's processes leave their group and their parent, but they keep their variables.
_MARK = "REGISTRY_SERVE_BENCHMARK"
_PATIENCE_S = 25


class ServerFailed(RuntimeError):
    """A server ended, did not get ready or answered wrongly; the message says where its log is."""


@dataclass(frozen=True)
class Running:
    """A server's process and what it started.

    Attributes:
        process: the one that was started; it leads a process group.
        log: its output.
        mark: what its environment is marked with.
    """

    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    def everything(self) -> list[psutil.Process]:
        """Return all processes that belong to the server."""
        return [each for each in psutil.process_iter() if _mark_of(each) == self.mark]

    def require_alive(self) -> None:
        """Raise ServerFailed if the process has ended."""
        if self.process.poll() is not None:
            raise ServerFailed(f"It ended with code {self.process.returncode}. Its last words:\n{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-2000:]


@contextmanager
def started(name: str, command: Sequence[str], variables: Mapping[str, str]) -> Iterator[Running]:
    """Run a server; afterwards end it and everything that it started, whatever happens meanwhile."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log, mark = LOGS / f"{name}.log", uuid.uuid4().hex
    environment = {**_clean_environment(), "PYTHONUNBUFFERED": "1", **variables, _MARK: mark}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=REPOSITORY, start_new_session=True
        )
    running = Running(process, log, mark)
    try:
        yield running
    finally:
        _end(running)


def free_port() -> int:
    """Return a port on which nobody listens, and that nobody gets who asks for any."""
    return free_ports([0])[0]


def _clean_environment() -> dict[str, str]:
    """Return this process's variables but for those that would change how a server works."""
    theirs = ("RAY_", "MLFLOW_", "MLSERVER_", "BENTOML_", "LIT_", "REGISTRY_SERVE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}


def _end(running: Running) -> None:
    running.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(_PATIENCE_S)
    # A process that starts another while it is looked for would hide it: hence until none is left.
    deadline = time.monotonic() + _PATIENCE_S
    while (left := running.everything()) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
    running.process.wait(_PATIENCE_S)


def _mark_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ().get(_MARK)
    return None
