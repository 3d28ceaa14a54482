"""The folder where this machine keeps what it has deployed: readable by its owner only."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

#: The environment variable that names another folder.
STATE_VARIABLE = "REGISTRY_SERVE_STATE"


def state_folder(*below: str) -> Path:
    """Return that folder, or one below it; it is made if it is not there."""
    root = Path(os.environ.get(STATE_VARIABLE) or platformdirs.user_state_dir("registry-serve")).expanduser()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.stat()
    # A folder such as /tmp, which everybody may write to, is root's, but not for root alone.
    if found.st_uid == os.getuid() and found.st_mode & 0o077 and not found.st_mode & stat.S_ISVTX:
        root.chmod(0o700)
    folder = root.joinpath(*below).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write(path: Path, content: str) -> None:
    """Write a file completely or not at all, for its owner only."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(content)  # tempfile's files have mode 0600
    os.replace(file.name, path)


def private(path: str, flags: int) -> int:
    """Open a file for its owner only, as ``open(..., opener=private)``."""
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # it may have been there
    return descriptor


@contextmanager
def changing(tell: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time start a cluster, or change what is deployed."""
    lock = FileLock(state_folder() / "changing.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell("Waiting for another command to finish")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
