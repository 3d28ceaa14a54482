"""A server that runs, answers rightly, and can be asked."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from benchmarks.dialects import Dialect, Workload
from benchmarks.ingress import Launch
from benchmarks.processes import Running, ServerFailed, free_port, started
from benchmarks.servers import Server

_READY_WITHIN_S = 60


class Connection:
    """One connection that is kept open: the request is made by hand, since at a millisecond each the client counts."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Send a request; return status and content."""
        self._http.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
        answer = self._http.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        """Close it."""
        self._http.close()


@dataclass(frozen=True)
class Endpoint:
    """Where a running server predicts with one model.

    Attributes:
        port: on loopback.
        path: where rows go.
        dialect: in what form.
        running: its processes.
        ready_after_s: from its start to its first right answer.
    """

    port: int
    path: str
    dialect: Dialect
    running: Running
    ready_after_s: float

    @property
    def url(self) -> str:
        """Return the address as one string."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def check(self, workload: Workload, rows: int) -> None:
        """Ask for some rows.

        Raises:
            ServerFailed: the answer is not the right one.
        """
        with closing(Connection(self.port)) as connection:
            _check(connection, self.path, self.dialect, workload, rows)


@contextmanager
def serving(server: Server, workload: Workload) -> Iterator[Endpoint]:
    """Run a server until it has answered one row rightly, and for as long as the caller measures.

    Raises:
        ServerFailed: it does not come up, or answers wrongly.
    """
    port = free_port()
    with running(server.name, server.launch(workload.model, port), port, server.dialects[workload.model], workload) as (
        endpoint
    ):
        yield endpoint


@contextmanager
def running(name: str, launch: Launch, port: int, dialect: Dialect, workload: Workload) -> Iterator[Endpoint]:
    """Run what a launch starts on a port, as ``serving`` does."""
    begin = time.monotonic()
    with started(name, launch.command, launch.variables) as processes:
        try:
            _wait(processes, port, dialect, workload, begin + _READY_WITHIN_S)
        except ServerFailed as failure:
            raise ServerFailed(f"{name}: {failure} Its log is {processes.log}.") from None
        yield Endpoint(port, dialect.path(workload.model), dialect, processes, time.monotonic() - begin)


def _wait(processes: Running, port: int, dialect: Dialect, workload: Workload, deadline: float) -> None:
    path, last = dialect.path(workload.model), "nobody listens"
    while time.monotonic() < deadline:
        processes.require_alive()
        try:
            with closing(Connection(port)) as connection:
                _check(connection, path, dialect, workload, 1)
                return
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        except ServerFailed as failure:
            last = str(failure)
        time.sleep(0.02)
    raise ServerFailed(f"No right answer within {_READY_WITHIN_S} s: {last}")


def _check(connection: Connection, path: str, dialect: Dialect, workload: Workload, rows: int) -> None:
    status, content = connection.post(path, dialect.encode(workload.rows(rows)))
    if status != 200:
        raise ServerFailed(f"It answered {status}: {content[:500]!r}")
    if dialect.decode(content) != workload.answers(rows):
        raise ServerFailed(f"It answered wrongly: {content[:500]!r}")
