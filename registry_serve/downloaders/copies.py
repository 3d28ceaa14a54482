"""One copy of a model's files, and who uses it.

A copy is a directory and, elsewhere, its manifest. Who reads from the directory holds a shared lock on the manifest,
and whoever removes the directory must first get the exclusive one. The operating system frees the locks of a process
that dies, so neither a crash nor SIGKILL leaves a copy in use for ever, or lets one go that is in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from registry_serve.downloaders.manifests import Manifest

CURRENT = ".json"
#: A copy that is damaged, but still in use: nobody gets it any more, and it goes with its last user.
RETIRED = ".retired"


class ModelFiles:
    """The files of one model on this machine: where they are is nobody's to remove, so there is nothing to release.

    Attributes:
        directory: holds the ``MLmodel`` file.
        size_bytes: of all files in it.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        """Remember where they are."""
        self.directory = directory
        self.size_bytes = size_bytes

    def release(self) -> None:
        """Say that nothing is read from the directory any more, also not lazily. Saying so twice is harmless."""

    def verify(self) -> bool:
        """Say whether the files are as they were downloaded; if not, the next download fetches them again.

        Reads every byte, so it is for a model that could not be loaded. Files that were not downloaded count as good.
        """
        return True

    def retire(self) -> None:
        """Let the next download fetch the files again; they stay for those who have them."""


class HeldFiles(ModelFiles):
    """A copy that stays until it is released, or until this process ends however it ends."""

    def __init__(self, copy: Copy, lock: int, manifest: Manifest, released: Callable[[], None]) -> None:
        """Take over a shared lock, as a file descriptor."""
        super().__init__(copy.directory, manifest.size_bytes)
        self._copy = copy
        self._manifest = manifest
        self._released = released
        # One element at the most: popping it is atomic, so two threads that release close it once.
        self._lock = [lock]

    def release(self) -> None:
        try:
            lock = self._lock.pop()
        except IndexError:
            return
        touch(lock)
        # Not unlocked but closed: a forked child that has the model too keeps the lock until it ends.
        os.close(lock)
        self._released()

    def verify(self) -> bool:
        if self._manifest.matches(self.directory):
            return True
        self.retire()
        return False

    def retire(self) -> None:
        self._copy.retire()


class Copy:
    """A place where a copy is or could be.

    Args:
        root: of all copies.
        name: of the directory and of the manifest.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Compute paths; nothing is touched."""
        self.directory = root / name
        self.manifest = root / ".manifests" / f"{name}{CURRENT}"
        self._retired = self.manifest.with_suffix(RETIRED)

    def hold(self, released: Callable[[], None]) -> HeldFiles | None:
        """Return the files if they are there and look complete, and None otherwise.

        Args:
            released: called after the release.
        """
        lock = _locked(self.manifest, fcntl.LOCK_SH)
        if lock is None:
            return None
        try:
            manifest = Manifest.parse(self.manifest.read_bytes())
            if manifest.fits(self.directory):
                touch(lock)
                return HeldFiles(self, lock, manifest, released)
        except (OSError, ValueError):
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        return None

    def publish(self, partial: Path, manifest: Manifest, released: Callable[[], None]) -> HeldFiles:
        """Move a complete directory here. It is in use from the first moment anybody can see it."""
        written = partial.with_name(f"{partial.name}{CURRENT}")
        written.write_bytes(manifest.encode())
        lock = _locked(written, fcntl.LOCK_SH)
        assert lock is not None
        try:
            # The manifest first: one without a directory counts as damaged, a directory without one as a stranger's.
            written.rename(self.manifest)
            partial.rename(self.directory)
        except BaseException:
            os.close(lock)
            raise
        touch(lock)
        return HeldFiles(self, lock, manifest, released)

    def retire(self) -> None:
        """Let nobody get it any more."""
        with suppress(FileNotFoundError):  # another process saw the damage too
            self.manifest.rename(self._retired)

    @property
    def is_taken(self) -> bool:
        """Whether there is something in this place, also something that is not ours."""
        # In this order: retiring moves the first to the second.
        return self.manifest.exists() or self._retired.exists() or self.directory.exists()


def remove(manifest: Path, directory: Path, trash: Path) -> bool:
    """Remove a copy unless a process uses it, and say whether it is gone."""
    lock = _locked(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        return False
    try:
        moved = trash / uuid4().hex
        with suppress(FileNotFoundError):
            directory.rename(moved)
        manifest.unlink()
    finally:
        os.close(lock)
    shutil.rmtree(moved, ignore_errors=True)
    return True


def touch(lock: int) -> None:
    """Note that the copy is used now. Its order among the others is all that depends on it."""
    now = time.time_ns()
    with suppress(OSError):
        os.utime(lock, ns=(now, now))


def _locked(path: Path, how: int) -> int | None:
    """Return a locked file descriptor, or None: the file is not there, or another process has the lock."""
    while True:
        try:
            # An exclusive lock on NFS needs a file that is open for writing.
            opened = os.open(path, os.O_RDWR if how & fcntl.LOCK_EX else os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(opened, how)
            if _is(path, opened):
                return opened
        except BlockingIOError:
            os.close(opened)
            return None
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)  # removed or retired while we waited


def _is(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False
