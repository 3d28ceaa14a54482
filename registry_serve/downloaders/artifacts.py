"""The node's copies of model artifacts, one directory per model, shared by all its processes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import platformdirs
from filelock import FileLock, Timeout

from registry_serve.downloaders.budgets import BUDGET_VARIABLE, budget_from_environment, half_of_what_could_be_free
from registry_serve.downloaders.copies import CURRENT, RETIRED, Copy, HeldFiles, ModelFiles, remove
from registry_serve.downloaders.manifests import Manifest, size_of

#: Names another directory for the copies, e.g. a larger or a faster disk.
ROOT_VARIABLE = "REGISTRY_SERVE_ARTIFACTS"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def local_directory(uri: str) -> Path | None:
    """Return the path behind an artifact location on this file system, or None for any other store.

    Args:
        uri: a path, or a ``file:`` URI; anything with another scheme is not local.
    """
    parts = urlsplit(uri)
    if not parts.scheme:
        return Path(uri)
    # Another host's "file" is not ours.
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return None


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error came from a disk, or a quota on it, that has no room."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    # MLflow packs the failures of single files into one text.
    if any(f"[Errno {code}]" in str(error) for code in _DISK_FULL):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


@dataclass(frozen=True)
class Usage:
    """What the copies of a node take.

    Attributes:
        models: complete copies.
        used_bytes: by them, and by what is being downloaded.
        max_bytes: the budget. Copies in use are kept also beyond it.
    """

    models: int
    used_bytes: int
    max_bytes: int


class ArtifactCache:
    """Downloads each model once and keeps it within a budget: a copy is there completely or not at all.

    A model's directory has the same path in every process and at every time, which matters for models that bring
    code: Python tells modules apart by their file. Only a copy that was damaged while it was in use is followed by one
    beside it. Nothing in the root is removed that was not put there by this class.

    Args:
        root: the directory of the copies; by default ``$REGISTRY_SERVE_ARTIFACTS``, else the user's cache directory.
        max_bytes: the budget; by default ``$REGISTRY_SERVE_ARTIFACTS_MAX_BYTES``, else half of what the disk would
            have free without the copies.

    Raises:
        ConfigurationError: the environment's budget is no number of bytes.
    """

    def __init__(self, root: Path | None = None, max_bytes: int | None = None) -> None:
        """Remember the root; nothing is created before the first download."""
        default = os.environ.get(ROOT_VARIABLE) or Path(platformdirs.user_cache_dir("registry_serve"), "artifacts")
        self.root = Path(root or default).expanduser().absolute()
        self._max_bytes = budget_from_environment() if max_bytes is None else max_bytes
        self._partials = self.root / ".partial"
        self._manifests = self.root / ".manifests"
        self._trash = self.root / ".trash"
        # Lock files stay: removing one while another process waits for it would let both in.
        self._locks = self.root / ".locks"
        self._tidied = False
        self._exceeded = False

    def fetch(self, name: str, download: Callable[[Path], None], size_bytes: int = 0) -> ModelFiles:
        """Return the model's files, downloading them first where they are missing or damaged.

        However many threads and processes ask at once, one of them downloads and the others wait for it. The files
        stay until they are released; what no process uses may be removed, least recently used first, to hold the
        budget or where the disk is full.

        Args:
            name: what identifies the content: the same name never means other files.
            download: fills the empty directory it is given. What it raises leaves nothing behind; a full disk makes
                room and calls it once more.
            size_bytes: of the files, where it is known: room is then made before.
        """
        name = _safe(name)
        if not self._tidied:
            self._tidied = True
            self._tidy()
        files = self._held(name)
        if files is not None:
            return files
        try:
            return self._fetch_missing(name, download, size_bytes)
        except Exception as error:
            if not is_disk_full(error):
                raise
        _log.warning("No room for a model in %s: all models there that no process uses are removed.", self.root)
        self._tidy(keep_unused=False)
        try:
            return self._fetch_missing(name, download, size_bytes)
        except Exception as error:
            if is_disk_full(error):
                _log.error("The disk of %s is full. Free some space, or set %s.", self.root, ROOT_VARIABLE)
            raise

    def usage(self) -> Usage:
        """Measure what is there now."""
        used = self._used()
        return Usage(len(list(self._manifests.glob(f"*{CURRENT}"))), used, self._budget(used))

    def _fetch_missing(self, name: str, download: Callable[[Path], None], size_bytes: int) -> HeldFiles:
        self._create_directories()
        with self._lock(name):
            files = self._held(name)
            if files is not None:
                return files
            for copy in self._copies(name):
                _log.warning("%s lost files or parts of files; it is downloaded again.", copy.directory)
                copy.retire()
            self._tidy(room=size_bytes)
            files = self._download(name, download)
        self._tidy()
        return files

    def _download(self, name: str, download: Callable[[Path], None]) -> HeldFiles:
        """Fill a directory beside the final one and move it there in one step. The caller holds the lock."""
        partial = self._partials / name
        _delete(partial)  # a process that died while it held the lock
        partial.mkdir()
        try:
            download(partial)
            places = (Copy(self.root, name if n == 1 else f"{name}~{n}") for n in itertools.count(1))
            free = next(place for place in places if not place.is_taken)
            return free.publish(partial, Manifest.of(partial), self._tidy)
        finally:
            _delete(partial)
            _delete(partial.with_name(f"{name}{CURRENT}"))

    def _held(self, name: str) -> HeldFiles | None:
        """Return a complete copy, in use from now on."""
        held = (copy.hold(self._tidy) for copy in self._copies(name))
        return next((files for files in held if files is not None), None)

    def _copies(self, name: str) -> Iterator[Copy]:
        """List where a copy may be that is not known to be damaged, usually one."""
        first = Copy(self.root, name)
        if first.manifest.exists():
            yield first
        for manifest in self._manifests.glob(f"{name}~*{CURRENT}"):
            yield Copy(self.root, manifest.stem)

    def _tidy(self, room: int = 0, keep_unused: bool = True) -> None:
        """Remove what dead processes left, damaged copies, and unused ones until ``room`` bytes fit into the budget."""
        if not self._manifests.is_dir():
            return
        try:
            with self._lock(".tidy"):
                self._sweep()
                used = self._used()
                allowed = self._budget(used) - room if keep_unused else -1
                for manifest in sorted(self._manifests.glob(f"*{CURRENT}"), key=_last_used):
                    if used <= allowed:
                        break
                    directory = self.root / manifest.stem
                    size = size_of(directory)
                    if remove(manifest, directory, self._trash):
                        _log.info("Removed %s (%d bytes), which no process uses.", directory, size)
                        used -= size
        except OSError as error:  # a download that suffers from it says so itself
            _log.warning("Copies of models in %s cannot be removed: %s", self.root, error)
            return
        if keep_unused and not room:
            self._note_excess(used, allowed)

    def _note_excess(self, used: int, allowed: int) -> None:
        if used > allowed and not self._exceeded:
            text = "Models in use take %d bytes in %s; the budget is %d (%s). They stay until they are unloaded."
            _log.warning(text, used, self.root, allowed, BUDGET_VARIABLE)
        self._exceeded = used > allowed

    def _sweep(self) -> None:
        for left in self._trash.iterdir():
            _delete(left)
        for manifest in self._manifests.glob(f"*{RETIRED}"):
            remove(manifest, self.root / manifest.stem, self._trash)
        for partial in self._partials.iterdir():
            try:
                # The operating system frees the lock of a process that dies: who gets it knows the owner is gone.
                with self._lock(partial.name.removesuffix(CURRENT)).acquire(timeout=0):
                    _delete(partial)
            except Timeout:
                continue  # somebody is downloading it right now

    def _used(self) -> int:
        """Count the bytes of copies, also damaged ones in use, and of downloads under way."""
        copies = {manifest.stem for manifest in self._manifests.glob("*")}
        return sum(size_of(self.root / name) for name in copies) + size_of(self._partials)

    def _budget(self, used: int) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        return half_of_what_could_be_free(self.root, used)

    def _create_directories(self) -> None:
        # Models may be confidential, and whoever can write here can have code run by the server.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self._partials, self._locks, self._trash, self._manifests):
            directory.mkdir(mode=0o700, exist_ok=True)

    def _lock(self, name: str) -> FileLock:
        # One object per use: each has a file handle of its own, so it shuts out threads as well as processes.
        return FileLock(self._locks / f"{name}.lock", is_singleton=False, thread_local=False)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _last_used(manifest: Path) -> int:
    try:
        return manifest.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _safe(name: str) -> str:
    """Return a name that is one plain path segment: identities come from files that others wrote."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    return "x" + hashlib.sha256(name.encode()).hexdigest()[:40]
