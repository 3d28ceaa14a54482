"""Downloading once per node, however many processes ask."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from registry_serve.downloaders.artifacts import ROOT_VARIABLE, is_disk_full
from registry_serve.downloaders.places import downloads_folder, hold, let_go
from registry_serve.downloaders.plugins import Download, Plugin, plugin_of
from registry_serve.downloaders.progress import Progress, Report, ignore, read_progress, tell
from registry_serve.errors import DownloadFailed, RegistryServeError

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LOOK_EVERY_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Done:
    """A download that succeeded.

    Attributes:
        at: seconds since 1970.
        boot: of the node. Downloaders write where they like, also where a reboot removes it.
        directory: of the model, if the function named one.
    """

    at: float
    boot: str
    directory: str | None

    @property
    def is_valid(self) -> bool:
        return self.boot == _boot() and (self.directory is None or Path(self.directory).is_dir())

    @property
    def path(self) -> Path | None:
        return None if self.directory is None else Path(self.directory)


#: Of each download, what this process relied on, and whether that came from an earlier run.
_relied_on: dict[str, tuple[_Done, bool]] = {}


def fetch(download: Download, on_progress: Callable[[Progress], None] = ignore) -> Path | None:
    """Run a download unless this node has it already; whoever asks meanwhile waits for the one that runs. Blocks.

    Call it in the process that reads the model: a copy from an object store stays until that process has ended, and
    nothing has the download run again for the handler of another process.

    Args:
        download: what to run.
        on_progress: called about twice a second, in a thread of its own while the download runs here.

    Returns:
        The directory of the model: the snapshot in Hugging Face's cache, the node's copy of what an object store has,
        or what the function returned, if that is a directory.

    Raises:
        ConfigurationError: the function is not there, or takes other parameters.
        DownloadFailed: it failed, or the folder of all downloads cannot be used.
    """
    plugin = plugin_of(download)
    if plugin is None:
        return None
    place = _Place(plugin.key)
    asked = time.time()
    place.create(plugin.what)
    _wait(place, plugin.what, on_progress)
    try:
        done = place.done()
        # One that ended while this process waited is as good as its own.
        if done is not None and done.is_valid and (done.at >= asked or not plugin.checks_itself):
            _relied_on[plugin.key] = (done, done.at < asked)
        else:
            place.forget()
            with Report(plugin.what, place.progress, on_progress).told():
                directory = _run(plugin)
            done = _Done(time.time(), _boot(), None if directory is None else str(directory))
            place.finish(done)
            _relied_on[plugin.key] = (done, False)
        hold(place.users)
        if done.path is not None:
            hold(done.path)
        return done.path
    except OSError as error:
        raise _unusable(plugin.what, error) from error
    finally:
        place.lock.release()


def forget(download: Download) -> bool:
    """Have the next fetch run a download again, as when files are missing from what an earlier run left.

    This process uses them no longer. What another process uses stays, and so does what this one has made itself.

    Returns:
        Whether a further fetch brings something else: there was an earlier run, and no other process uses it.

    Raises:
        ConfigurationError: as ``fetch``.
        DownloadFailed: the folder of all downloads cannot be used.
    """
    plugin = plugin_of(download)
    if plugin is None or not os.path.isdir(downloads_folder()):
        return False
    place = _Place(plugin.key)
    place.create(plugin.what)
    with place.lock:
        done = place.done()
        mine, earlier = _relied_on.get(plugin.key, (done, done is not None))
        if not earlier:
            return False
        if done == mine:  # otherwise another process has run it again meanwhile
            if not let_go(place.users):
                _log.warning("%s is not downloaded again: another process of this node uses it.", plugin.what)
                return False
            place.forget()
        _relied_on.pop(plugin.key, None)
        return True


def under_way() -> list[Progress]:
    """Return what processes of this node download right now."""
    found = [_progress_of(file) for file in sorted((downloads_folder() / "progress").glob("*.json"))]
    return [progress for progress in found if progress is not None]


class _Place:
    """Where the traces of one download lie.

    Args:
        key: of the download.
    """

    def __init__(self, key: str) -> None:
        folder = downloads_folder()
        self._folders = tuple(folder / name for name in ("locks", "done", "progress", "users"))
        locks, done, progress, users = self._folders
        # The lock's file stays: removing it while another process waits for it would let both in.
        self.lock = FileLock(locks / f"{key}.lock", is_singleton=False, thread_local=False)
        self.marker = done / f"{key}.json"
        self.progress = progress / f"{key}.json"
        #: Held by each process that uses what was downloaded.
        self.users = users / key

    def create(self, what: str) -> None:
        try:
            root = self._folders[0].parents[1]
            for folder in (root, root / ".downloads", *self._folders):
                # Whoever can write here can have code run by the server.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.users.touch(mode=0o600)
        except OSError as error:
            raise _unusable(what, error) from error

    def done(self) -> _Done | None:
        try:
            return _Done(**json.loads(self.marker.read_text()))
        except (OSError, TypeError, ValueError):
            return None

    def finish(self, done: _Done) -> None:
        written = self.marker.with_suffix(".new")
        written.write_text(json.dumps(asdict(done)))
        written.replace(self.marker)

    def forget(self) -> None:
        self.marker.unlink(missing_ok=True)


def _wait(place: _Place, what: str, on_progress: Callable[[Progress], None]) -> None:
    waiting = False
    while True:
        try:
            place.lock.acquire(timeout=_LOOK_EVERY_S)
            return
        except Timeout:
            if not waiting:
                waiting = True
                _log.info("Another process of this node downloads %s; this one waits for it.", what)
            progress = read_progress(place.progress)
            if progress is not None:
                tell(on_progress, progress)
        except OSError as error:
            raise _unusable(what, error) from error


def _run(plugin: Plugin) -> Path | None:
    _log.info("Downloading %s", plugin.what)
    try:
        result = plugin.function(**plugin.parameters)
    except RegistryServeError:
        raise
    # A downloader that was a script once may end with sys.exit.
    except (Exception, SystemExit) as error:
        _log.exception("The downloader %s failed.", plugin.name)
        raise _failure(plugin.what, error) from error
    return _directory(result)


def _directory(result: Any) -> Path | None:
    if not isinstance(result, (str, Path)) or not os.path.isdir(result):
        return None
    return Path(os.path.abspath(result))


def _failure(what: str, error: BaseException) -> DownloadFailed:
    return _full(what, error) or DownloadFailed(
        what, f"the downloader raised {type(error).__name__}; the log has its message"
    )


def _unusable(what: str, error: OSError) -> DownloadFailed:
    reason = (
        f"the folder {downloads_folder()} cannot be used ({type(error).__name__}); users cannot share one, so let "
        f"{ROOT_VARIABLE} name a folder of this user"
    )
    return _full(what, error) or DownloadFailed(what, reason)


def _full(what: str, error: BaseException) -> DownloadFailed | None:
    if not is_disk_full(error):
        return None
    reason = f"the disk is full; free some space on it, or let {ROOT_VARIABLE} or HF_HOME name a larger one"
    return DownloadFailed(what, reason)


def _progress_of(file: Path) -> Progress | None:
    try:
        lock = os.open(file.parents[1] / "locks" / f"{file.stem}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_progress(file)
    else:
        file.unlink(missing_ok=True)  # left by a process that died; nobody starts while this lock is held
        return None
    finally:
        os.close(lock)


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
