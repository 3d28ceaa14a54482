"""Where a node keeps what it downloads, and who uses it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from registry_serve.downloaders.artifacts import ArtifactCache

#: Files and directories that this process has, by device and inode, with the descriptors that hold them.
_held: dict[tuple[int, int], int] = {}


def downloads_folder() -> Path:
    """Return the folder of all downloads: inside that of the artifacts, whose budget ignores it."""
    return ArtifactCache(max_bytes=0).root / ".downloads"


def hold(path: Path) -> None:
    """Keep a file or a directory of the folder until this process ends, however it ends."""
    if not path.is_relative_to(downloads_folder()):
        return
    descriptor = os.open(path, os.O_RDONLY)
    held = os.fstat(descriptor)
    if (held.st_dev, held.st_ino) in _held:
        os.close(descriptor)
        return
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[held.st_dev, held.st_ino] = descriptor


def let_go(path: Path) -> bool:
    """Hold it no longer, and say whether no other process does. The caller sees to it that none begins to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        held = os.fstat(descriptor)
        mine = _held.pop((held.st_dev, held.st_ino), None)
        if mine is not None:
            os.close(mine)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
