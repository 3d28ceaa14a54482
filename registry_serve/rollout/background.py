"""The cluster in the background: one for each user of a machine, started by the first deployment."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry_serve.errors import ConfigurationError
from registry_serve.launch import Launch, fast_environment, require_free
from registry_serve.policies import Limits
from registry_serve.rollout import sessions
from registry_serve.rollout.state import private, state_folder, write

Tell = Callable[[str], None]

#: HAProxy takes at most 97 characters for the path of a socket, and Ray adds 70 of its own.
_SHORT = "/tmp"  # noqa: S108 - the folder in it is made by tempfile
#: Variables of the cluster's processes beside those that make it fast.
_OURS = {
    # Replicas are few and live long; Ray would start one idle worker for each CPU of its book-keeping.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Serve starts a replica anew anyway when its packages cannot be installed.
    "RUNTIME_ENV_RETRY_TIMES": "1",
    # What replicas log is to be seen when they log it, and not when a thousand lines have come together.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}
#: One of those variables; it holds the folder of the cluster.
_MARK = "RAY_SERVE_HAPROXY_SERVER_STATE_BASE"


class Held(BaseModel):
    """What must be known of that cluster to end it: every release writes this so.

    Attributes:
        leader: the process that holds it; its number is also that of the session of all its processes.
        born: when that process began, in seconds since the epoch: numbers of processes are used again.
        folder: for HAProxy's files, and the line.
    """

    model_config = ConfigDict(frozen=True)

    leader: int
    born: float
    folder: str

    @property
    def alive(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.leader)
            return process.create_time() == self.born and process.status() != psutil.STATUS_ZOMBIE
        return False

    def end(self) -> None:
        """End whatever is left of it, at once, and forget it."""
        if self.alive:
            sessions.end(self.leader)
        else:
            self._end_leftovers()
        shutil.rmtree(self.folder, ignore_errors=True)
        _record().unlink(missing_ok=True)

    def _end_leftovers(self) -> None:
        # Ray's processes end with the one that started them; an HAProxy may stay and keep its port. The number of the
        # session may be another's by now.
        for each in sessions.living(self.leader):
            with suppress(psutil.Error):
                if each.environ().get(_MARK) == self.folder:
                    each.kill()


class Background(Held):
    """That cluster, as its record tells.

    Attributes:
        address: of Ray.
        session: folder of Ray's files and logs.
        started: when the process that holds it began.
        socket: of the line to that process.
        key: that opens the line, hexadecimal.
        host: that it listens on.
        port: that it listens on.
    """

    address: str
    session: str
    started: datetime
    socket: str
    key: str = Field(repr=False)
    host: str
    port: int


def living(tell: Tell) -> Background | None:
    """Return the cluster in the background, if it lives; what a dead one has left is removed.

    Raises:
        ConfigurationError: its record cannot be read, so it cannot be asked for anything.
    """
    try:
        written = _record().read_bytes()
    except FileNotFoundError:
        return None
    found = _read(written)
    if found.alive:
        if isinstance(found, Background):
            return found
        raise ConfigurationError(
            f"The Ray cluster in the background is one of another release ({_record()}). End it, with all that is "
            f"deployed on it, by `kill {found.leader}`; then deploy again."
        )
    tell("The Ray cluster in the background has ended unexpectedly; what it left is removed")
    found.end()
    return None


def _read(written: bytes) -> Held:
    for kind in (Background, Held):
        with suppress(ValidationError):
            return kind.model_validate_json(written)
    raise ConfigurationError(f"{_record()} cannot be read. End what it was written for, if that runs, and remove it.")


def start(tell: Tell, host: str, port: int) -> Background:
    """Start a cluster that outlives this process.

    Raises:
        ConfigurationError: the port is taken, or Ray does not start.
    """
    require_free(host, port)
    folder = Path(tempfile.mkdtemp(prefix="serve-", dir=_SHORT))
    launch = Launch(applications=(), host=host, port=port)
    settings = fast_environment(folder, launch, Limits().max_body_bytes, usual_ports=False)
    process = _process(folder, {**_OURS, **settings})
    try:
        made = _started(process, folder, host, port, tell)
        write(_record(), made.model_dump_json(indent=2))
    except BaseException:
        sessions.end(process.pid)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return made


def _process(folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    with open(_log(), "wb", opener=private) as said:
        return subprocess.Popen(
            [sys.executable, "-m", "registry_serve.rollout.head"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            cwd=folder,
            start_new_session=True,
            text=True,
        )


def _started(process: subprocess.Popen[str], folder: Path, host: str, port: int, tell: Tell) -> Background:
    asked = {"host": host, "port": port, "socket": str(folder / "line"), "key": secrets.token_hex()}
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(asked) + "\n")
    with process.stdout as told:
        for line in told:
            message = json.loads(line)
            if "doing" in message:
                tell(message["doing"])
                continue
            born = psutil.Process(process.pid).create_time()
            started = datetime.fromtimestamp(born, timezone.utc)
            known = {"leader": process.pid, "born": born, "started": started, "folder": str(folder)}
            return Background(**message, **asked, **known)
    last = [line for line in _log().read_text(errors="replace").splitlines() if line.strip()][-1:]
    raise ConfigurationError(f"Ray does not start. The last it said: {' '.join(last)[-300:]} (the rest: {_log()})")


def _log() -> Path:
    return state_folder() / "cluster.log"


def _record() -> Path:
    return state_folder() / "cluster.json"
