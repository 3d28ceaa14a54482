"""Starting a cluster, waiting until it answers, and ending it: what ``run`` and ``demo --serve`` share."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from registry_serve.cli.screen import Progress, progress, say
from registry_serve.errors import ConfigurationError
from registry_serve.launch import Launch, fast_environment
from registry_serve.rollout import sessions
from registry_serve.rollout.state import private, state_folder

#: HAProxy asks a new replica a few times whether it is healthy before it sends it anything.
_ANSWER_WITHIN_S = 60.0
#: Exit code of a command that Ctrl-C ended early.
INTERRUPTED = 130
#: HAProxy takes at most 97 characters for the path of a socket, and Ray adds 70 of its own.
_SHORT = "/tmp"  # noqa: S108 - the folder in it is made by tempfile


class ClusterProcess:
    """The process that holds a cluster, and everything that it starts.

    Args:
        launch: what it serves.
        folder: for its files.
        environment: of the cluster.
    """

    def __init__(self, launch: Launch, folder: Path, environment: Mapping[str, str]) -> None:
        """Start it."""
        self._log = folder / "cluster.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "registry_serve.cluster"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                text=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(launch.model_dump_json() + "\n")
        self._process.stdin.flush()

    def wait_until_running(self, show: Progress) -> str:
        """Show what it is doing until it serves; return the folder of Ray's logs.

        Raises:
            ConfigurationError: it cannot start; the message says why.
        """
        for message in self._messages():
            if "error" in message:
                raise ConfigurationError(message["error"])
            if "running" in message:
                return f"{message['running']}/logs/serve"
            show(message["doing"])
        raise self._ended()

    def wait(self) -> None:
        """Wait until it ends, which it only does when something went wrong.

        Raises:
            ConfigurationError: it has ended.
        """
        self._process.wait()
        raise self._ended()

    def drain(self) -> None:
        """Let it answer what it has taken, and end.

        Raises:
            ConfigurationError: it could not.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise self._ended()

    def _messages(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def _ended(self) -> ConfigurationError:
        self._process.wait()
        last = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        return ConfigurationError("\n".join(["Ray has ended unexpectedly. The last it said:", *last]))

    def close(self) -> None:
        """End whatever is left of it, at once. Nothing interrupts this: an HAProxy without a cluster keeps its port."""
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(which, signal.SIG_IGN)
        sessions.end(self._process.pid)
        self._process.wait()


def serve_until_stopped(
    launch: Launch, announce: Callable[[str], None], *, max_body_bytes: int, headers: Mapping[str, str] | None = None
) -> None:
    """Serve until Ctrl-C or SIGTERM, and then until every request in flight has its answer.

    Args:
        launch: what is served.
        announce: called once it answers, with the folder of the logs.
        max_body_bytes: of a request.
        headers: what a request must bring to be let in.

    Raises:
        ConfigurationError: it cannot start, or has ended by itself.
    """
    with (
        _interrupted_by_signals(),
        tempfile.TemporaryDirectory(prefix="serve-", dir=_SHORT, ignore_cleanup_errors=True) as name,
        starting() as (usual_ports, started),
        closing(_cluster(launch, Path(name), max_body_bytes, usual_ports)) as cluster,
    ):
        answering = False
        try:
            with progress() as show:
                logs = cluster.wait_until_running(show)
                show("Waiting for the first answer")
                wait_until_answering(launch, headers or {})
            started()
            answering = True
            announce(logs)
            cluster.wait()
        except KeyboardInterrupt:
            if not answering:
                _say_if_anybody_listens("Stopped before it was ready.")
                raise SystemExit(INTERRUPTED) from None
            _drain(cluster)


def _cluster(launch: Launch, folder: Path, max_body_bytes: int, usual_ports: bool) -> ClusterProcess:
    return ClusterProcess(launch, folder, fast_environment(folder, launch, max_body_bytes, usual_ports=usual_ports))


@contextmanager
def starting() -> Iterator[tuple[bool, Callable[[], None]]]:
    """Say whether this user starts no other cluster here just now, and give what to call once ours has started.

    HAProxy listens on its ports only long after they were chosen: of two that start together, one keeps off the usual.
    """
    try:
        file = open(state_folder() / "starting.lock", "a", opener=private)  # noqa: SIM115 - closed below
    except OSError:  # a container may have no home folder
        yield False, lambda: None
        return
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False, lock.close
        else:
            yield True, lock.close


def _drain(cluster: ClusterProcess) -> None:
    # A terminal that is closed sends its signal twice.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _say_if_anybody_listens("Stopping: requests in flight are answered first. Ctrl-C again ends it at once.")
    try:
        cluster.drain()
    except KeyboardInterrupt:
        _say_if_anybody_listens("Ended at once.")
        raise SystemExit(INTERRUPTED) from None
    _say_if_anybody_listens("Stopped.")


def _say_if_anybody_listens(text: str) -> None:
    """Print a line where that is possible: Ctrl-C ends a ``tee`` behind us as well, and a terminal may be gone."""
    # Rich leaves the program when a pipe is broken; the requests in flight would end with it.
    with suppress(OSError, SystemExit):
        say(text)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM, and the end of the terminal, do what Ctrl-C does."""
    signals = [signal.SIGTERM, signal.SIGHUP]
    before = {each: signal.getsignal(each) for each in signals}
    for each in signals:
        if before[each] is not signal.SIG_IGN:  # nohup
            signal.signal(each, signal.default_int_handler)
    # A shell without job control starts what it puts into the background with SIGINT ignored.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def local_address(launch: Launch) -> str:
    """Return the address under which this machine reaches what is served."""
    return f"http://127.0.0.1:{launch.port}"


def wait_until_answering(launch: Launch, headers: Mapping[str, str]) -> None:
    """Wait until every application answers, on its health check and on a route that does something.

    Raises:
        ConfigurationError: it does not, although its replicas are ready.
    """
    deadline = time.monotonic() + _ANSWER_WITHIN_S
    for served in launch.applications:
        below = local_address(launch) + served.route_prefix.rstrip("/")
        for path in ("/health/ready", "/model"):
            while fetch(f"{below}{path}", headers) is None:
                if time.monotonic() > deadline:
                    raise ConfigurationError(f"The replicas are ready, but {below}{path} does not answer.")
                time.sleep(0.1)


def fetch(address: str, headers: Mapping[str, str]) -> Any | None:
    """Return the JSON of an answer with status 200, else None."""
    request = urllib.request.Request(address, headers=dict(headers))  # noqa: S310 - http, made by us
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=30) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None
