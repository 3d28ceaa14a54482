"""One file of an object store on its way here: it goes on where it broke off, and is checked at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry_serve.errors import DownloadFailed

BLOCK_BYTES = 2**20
#: How often in a row a file is asked for in vain before the store counts as silent.
_MOST_ATTEMPTS = 3


class StoreSilent(DownloadFailed):
    """The store does not answer, or breaks off: what an earlier download left may be used instead."""


class ObjectChanged(Exception):
    """The store has another file under this name by now, or none."""


class ChecksumWrong(Exception):
    """The client library has compared checksums itself."""


class Hash(Protocol):
    """What ``hashlib`` returns."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True)
class Checksum:
    """What a store says of a file's content: ``start`` begins a hash that must end as ``digest``."""

    start: Callable[[], Hash]
    digest: bytes


@dataclass(frozen=True)
class StoredFile:
    """A file in a store.

    Attributes:
        name: below the folder that is downloaded.
        key: in the bucket.
        size: bytes.
        version: changes with the content: an ETag or a generation.
    """

    name: str
    key: str
    size: int
    version: str


class Store(Protocol):
    """A folder of an object store. Each method raises :class:`DownloadFailed`, or :class:`StoreSilent`.

    Attributes:
        uri: of the folder, without credentials.
    """

    uri: str

    def files(self) -> list[StoredFile]:
        """List everything in the folder, at any depth."""

    def checksum(self, file: StoredFile) -> Checksum | None:
        """Return what the store knows of the content, if anything. Raises ObjectChanged."""

    def read(self, file: StoredFile, start: int) -> Iterator[bytes]:
        """Read a file from its byte number ``start`` on. Raises ObjectChanged and ChecksumWrong."""


class Transfer:
    """Fetches files into parts that a later process can continue.

    Args:
        store: where they are.
        advance: is told of every byte that is here.
    """

    def __init__(self, store: Store, advance: Callable[[int], None]) -> None:
        self._store = store
        self._advance = advance
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all that is under way soon; what is here already stays."""
        self._stopped.set()

    def fetch(self, file: StoredFile, part: Path, target: Path) -> None:
        """Bring one file here; it appears as ``target`` when it is complete and right.

        Raises:
            DownloadFailed: it cannot be read, or came twice with another content than the store names.
            ObjectChanged: it is another file by now.
        """
        in_vain = damaged = 0
        while not self._stopped.is_set():
            before, counted = _size(part), _Counted(self._advance)
            try:
                whole = self._continue(file, part, counted)
            except StoreSilent:
                in_vain = in_vain + 1 if _size(part) <= before else 1
                if in_vain == _MOST_ATTEMPTS:
                    raise
                counted.take_back()
                self._stopped.wait(in_vain)
                continue
            if self._stopped.is_set():
                return
            if whole:
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)
                return
            counted.take_back()
            part.unlink(missing_ok=True)
            damaged += 1
            if damaged == 2:
                reason = f"{file.name!r} arrived twice with another checksum than the store has for it; upload it again"
                raise DownloadFailed(self._store.uri, reason)

    def _continue(self, file: StoredFile, part: Path, counted: _Counted) -> bool:
        """Append what is missing, and say whether the content is the store's."""
        checksum = self._store.checksum(file)
        hashed = None if checksum is None else checksum.start()
        with part.open("ab+") as written:
            if written.tell() > file.size:
                written.truncate(0)
            written.seek(0)
            while block := written.read(BLOCK_BYTES):
                counted.add(block, hashed)
            try:
                for block in self._store.read(file, counted.bytes) if counted.bytes < file.size else ():
                    written.write(block)
                    counted.add(block, hashed)
                    if self._stopped.is_set():
                        return False
            except ChecksumWrong:
                return False
        return counted.bytes == file.size and (checksum is None or hashed is None or hashed.digest() == checksum.digest)


class _Counted:
    """The bytes of one file that are here, as far as they were told."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.bytes = 0
        self._advance = advance

    def add(self, block: bytes, hashed: Hash | None) -> None:
        self.bytes += len(block)
        self._advance(len(block))
        if hashed is not None:
            hashed.update(block)

    def take_back(self) -> None:
        """Count none of them: they are read again."""
        self._advance(-self.bytes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
