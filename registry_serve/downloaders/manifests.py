"""What a copy consisted of when it was downloaded, to tell later whether it still does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Manifest:
    """The files of one model.

    Attributes:
        files: path inside the directory to size in bytes and SHA-256 in hexadecimal.
    """

    files: Mapping[str, tuple[int, str]]

    @classmethod
    def of(cls, directory: Path) -> Manifest:
        """Describe a directory as it is now. Reads every byte."""
        files = regular_files(directory)
        return cls({os.path.relpath(each.path, directory): (each.stat().st_size, _sha256(each.path)) for each in files})

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Read what :meth:`encode` wrote.

        Raises:
            ValueError: it wrote something else.
        """
        try:
            return cls({name: (int(size), str(digest)) for name, (size, digest) in json.loads(content).items()})
        except (AttributeError, TypeError) as error:
            raise ValueError("not a manifest") from error

    def encode(self) -> bytes:
        """Write it as JSON."""
        return json.dumps(self.files).encode()

    @property
    def size_bytes(self) -> int:
        """Sizes of all files together."""
        return sum(size for size, _ in self.files.values())

    def fits(self, directory: Path) -> bool:
        """Say whether every file is there and as long as it was. Files that came later do not matter."""
        try:
            return all(os.stat(f"{directory}/{name}").st_size == size for name, (size, _) in self.files.items())
        except OSError:
            return False

    def matches(self, directory: Path) -> bool:
        """Say whether every file still has the content it had. Reads every byte."""
        try:
            return self.fits(directory) and all(
                _sha256(f"{directory}/{name}") == digest for name, (_, digest) in self.files.items()
            )
        except OSError:  # a disk that fails says so when it is read
            return False


def regular_files(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    """Walk a directory's files, at any depth; what vanishes meanwhile is passed over."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from regular_files(entry.path)
                elif entry.is_file():
                    yield entry
    except (FileNotFoundError, NotADirectoryError):
        return


def size_of(directory: Path) -> int:
    """Return the bytes of all files in a directory; 0 where there is none. It may change meanwhile."""
    return sum(_size(entry.path) for entry in regular_files(directory))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
