"""The node's copies of model artifacts, one directory per model, shared by all its processes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import platformdirs
from filelock import FileLock, Timeout

#: Names another directory for the copies, e.g. a larger or a faster disk.
ROOT_VARIABLE = "REGISTRY_SERVE_ARTIFACTS"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


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


class ArtifactCache:
    """Downloads each model once and keeps it: a copy is there completely or not at all.

    A model's directory has the same path in every process and at every time, which matters for models that bring
    code: Python tells modules apart by their file. Nothing is removed yet except what a dead process left half done.

    Args:
        root: the directory of the copies; by default ``$REGISTRY_SERVE_ARTIFACTS``, else the user's cache directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Remember the root; nothing is created before the first download."""
        default = os.environ.get(ROOT_VARIABLE) or Path(platformdirs.user_cache_dir("registry_serve"), "artifacts")
        self.root = Path(root or default).expanduser().absolute()
        self._swept = False

    def directory(self, name: str) -> Path:
        """Return where the model of this name is kept, or will be."""
        return self.root / _safe(name)

    def fetch(self, name: str, download: Callable[[Path], None]) -> Path:
        """Return the model's directory, downloading it first where it is missing.

        However many threads and processes ask at once, one of them downloads and the others wait for it.

        Args:
            name: what identifies the content: the same name never means other files.
            download: fills the empty directory it is given. What it raises leaves nothing behind.
        """
        directory = self.directory(name)
        if directory.is_dir():
            return directory
        self._prepare()
        with self._lock(directory.name):
            if not directory.is_dir():
                self._download(directory, download)
        return directory

    def _download(self, directory: Path, download: Callable[[Path], None]) -> None:
        """Fill a directory beside the final one and move it there in one step. The caller holds the lock."""
        partial = self._partials / directory.name
        shutil.rmtree(partial, ignore_errors=True)  # a process that died while it held the lock
        partial.mkdir()
        try:
            download(partial)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _prepare(self) -> None:
        """Create the directories, and once per process remove what dead processes left."""
        # Models may be confidential, and whoever can write here can have code run by the server.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._partials.mkdir(mode=0o700, exist_ok=True)
        self._locks.mkdir(mode=0o700, exist_ok=True)
        if self._swept:
            return
        self._swept = True
        for partial in self._partials.iterdir():
            try:
                # The operating system frees the lock of a process that dies: who gets it knows the owner is gone.
                with self._lock(partial.name).acquire(timeout=0):
                    shutil.rmtree(partial, ignore_errors=True)
            except Timeout:
                continue  # somebody is downloading it right now

    def _lock(self, name: str) -> FileLock:
        # One object per use: each has a file handle of its own, so it shuts out threads as well as processes.
        return FileLock(self._locks / f"{name}.lock", is_singleton=False, thread_local=False)

    @property
    def _partials(self) -> Path:
        return self.root / ".partial"

    @property
    def _locks(self) -> Path:
        # Lock files stay: removing one while another process waits for it would let both in.
        return self.root / ".locks"


def _safe(name: str) -> str:
    """Return a name that is one plain path segment: identities come from files that others wrote."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    return "x" + hashlib.sha256(name.encode()).hexdigest()[:40]
