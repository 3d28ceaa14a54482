"""Loads under way on this node, noted in files, so that those that ended their process are known to the next one.

A version whose loading crashes (in native code, or for memory) would take a replica down at every request that names
it. So each load has a file for as long as it lasts, held by an ``flock``: a file that nobody holds was left by a
process that died. One such death may have any cause; a second one of the same version within the hour hardly.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from registry_serve.registry import VersionKey

#: Deaths within so many seconds, counted from the beginning of a load, from which on a version is held to cause them.
DEATHS, WITHIN_S = 2, 3600.0

logger = logging.getLogger(__name__)


class Attempts:
    """Notes the loads of this node.

    Args:
        folder: the same for all processes of the node; made when the first load begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def deadly(self, key: VersionKey) -> bool:
        """Say whether loads of a version have ended their processes lately."""
        return len(self._left_over(key)) >= DEATHS

    @contextmanager
    def noted(self, key: VersionKey) -> Iterator[None]:
        """Note a load for as long as this lasts. When it succeeds, earlier deaths are forgotten."""
        with ExitStack() as noting:
            try:
                noting.enter_context(self._note(key))
            except OSError as error:
                # A model whose files are there already needs no disk, and must not fail for want of one.
                logger.warning("Loads cannot be noted in %s: %s", self.folder, error)
            yield
        self.forget(key)

    @contextmanager
    def _note(self, key: VersionKey) -> Iterator[None]:
        for folder in (self.folder.parent, self.folder):  # the mode is that of the last one only
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = self.folder / f".{uuid.uuid4().hex}"
        with hidden.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            # Under its name only now that it is locked: nobody takes it for a dead one's meanwhile.
            note = hidden.rename(self.folder / f"{_name(key)}.{uuid.uuid4().hex}")
            try:
                yield
            finally:
                note.unlink(missing_ok=True)

    def forget(self, key: VersionKey) -> None:
        """Forget the deaths of a version."""
        for left in self._left_over(key):
            left.unlink(missing_ok=True)

    def _left_over(self, key: VersionKey) -> list[Path]:
        left = [note for note in self.folder.glob(f"{_name(key)}.*") if _is_free(note)]
        for note in left:
            if _age_s(note) > WITHIN_S:
                note.unlink(missing_ok=True)
        return [note for note in left if note.exists()]


def _name(key: VersionKey) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:40]


def _age_s(note: Path) -> float:
    try:
        return time.time() - note.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_free(note: Path) -> bool:
    try:
        descriptor = os.open(note, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared: of two who look at the same time, neither takes the other for the one that loads.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
