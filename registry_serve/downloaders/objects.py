"""The node's copy of a folder in an object store: it is there completely or not at all, and goes on where it broke off.

A copy's name says what the folder consisted of, so other content under the same address becomes another copy. Who has
a copy holds a shared ``flock`` on its directory until the process ends; what nobody holds goes when a newer one is
there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from registry_serve.downloaders.artifacts import ROOT_VARIABLE
from registry_serve.downloaders.places import downloads_folder, hold
from registry_serve.downloaders.progress import current_report
from registry_serve.downloaders.transfers import ObjectChanged, Store, StoredFile, StoreSilent, Transfer
from registry_serve.errors import DownloadFailed

_THREADS = 4
#: How often the folder is listed again because somebody is writing to it.
_MOST_LISTINGS = 3

_log = logging.getLogger(__name__)


def local_copy(store: Store) -> Path:
    """Return a directory with what the store has in a folder, downloading what is missing. Blocks.

    Raises:
        DownloadFailed: it cannot be had, and if the store is merely silent, there is no earlier copy either.
    """
    copies = _Copies(store)
    with copies.locked():
        for _ in range(_MOST_LISTINGS):
            try:
                listing = _Listing.of(store)
                directory = copies.complete(listing) or copies.download(listing)
                break
            except ObjectChanged:
                continue
            except StoreSilent as error:
                last = copies.last()
                if last is None:
                    raise
                _log.warning("%s The copy from an earlier download is used: %s", error, last)
                directory = last
                break
        else:
            raise DownloadFailed(store.uri, "its files change while they are downloaded; try again when they are there")
        hold(directory)
        copies.remove_others(directory)
    return directory


@dataclass(frozen=True)
class _Listing:
    """What a folder consists of: ``files`` by their names, each of which stays inside the folder."""

    files: Mapping[str, StoredFile]

    @classmethod
    def of(cls, store: Store) -> _Listing:
        files = {file.name: file for file in store.files()}
        if not files:
            raise DownloadFailed(store.uri, "there is no file under it; compare the path with what the bucket has")
        folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
        for name in files:
            if not _stays_inside(name) or name in folders:
                raise DownloadFailed(store.uri, f"it has a file {name!r}, which is no path inside a folder; rename it")
        return cls(files)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encode().encode()).hexdigest()[:16]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def encode(self) -> str:
        """Write as JSON what tells it from other listings."""
        return json.dumps({name: self.entry(name) for name in sorted(self.files)})

    def entry(self, name: str) -> list[int | str]:
        """Say what a file consists of."""
        return [self.files[name].size, self.files[name].version]

    def missing(self, directory: Path) -> list[StoredFile]:
        """List what is not in a directory, or not with its size."""
        return [file for name, file in self.files.items() if not _is_file(directory / name, file.size)]


class _Copies:
    """The copies of one folder, and the download under way. Used by who holds the lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        last = re.sub(r"[^A-Za-z0-9_-]", "_", store.uri.rstrip("/").rpartition("/")[2])[:64]
        self._name = last or "model"
        self._folder = downloads_folder() / "copies" / f"{self._name}-{_short(store.uri)}"
        self._partial = self._folder / ".partial"
        #: Which copy was complete at last, and of what it consists.
        self._current = self._folder / ".current.json"

    def locked(self) -> FileLock:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self._folder / ".lock", is_singleton=False, thread_local=False)

    def complete(self, listing: _Listing) -> Path | None:
        """Return the copy of this content, if all of it is there."""
        directory = self._directory(listing)
        if not directory.is_dir() or listing.missing(directory):
            return None
        self._note(listing)
        return directory

    def last(self) -> Path | None:
        """Return the copy that was complete at last, if it still is."""
        try:
            noted = json.loads(self._current.read_text())
            directory = self._folder / str(noted["copy"])
            sizes = {str(name): int(size) for name, (size, _) in noted["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return directory if all(_is_file(directory / name, size) for name, size in sizes.items()) else None

    def download(self, listing: _Listing) -> Path:
        directory, files = self._directory(listing), self._partial / "files"
        if directory.is_dir():  # somebody removed files from it, and others may be reading the rest
            _log.warning("%s lost files or parts of files; these are downloaded again.", directory)
            files = directory
        self._keep_what_is_the_same(listing)
        files.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fetch(listing, files)
        if files != directory:
            files.rename(directory)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._note(listing)
        return directory

    def remove_others(self, directory: Path) -> None:
        """Remove the copies of other content that no process has."""
        for other in self._folder.iterdir():
            if other == directory or not other.is_dir() or other == self._partial:
                continue
            descriptor = os.open(other, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)
                _log.info("Removed %s, which no process uses.", other)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)

    def _directory(self, listing: _Listing) -> Path:
        return self._folder / f"{self._name}-{listing.digest}"

    def _note(self, listing: _Listing) -> None:
        note = {"copy": self._directory(listing).name, "files": json.loads(listing.encode())}
        _write(self._current, json.dumps(note))

    def _keep_what_is_the_same(self, listing: _Listing) -> None:
        """Remove from an unfinished download what the store has no more, or with other content."""
        state, files, parts = self._partial / "listing.json", self._partial / "files", self._partial / "parts"
        try:
            before = json.loads(state.read_text())
        except (OSError, ValueError):
            before = {}
        same = {name for name in listing.files if before.get(name) == listing.entry(name)}
        _remove_but(files, {files / name for name in same})
        _remove_but(parts, {parts / _short(name) for name in same})
        parts.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(state, listing.encode())

    def _fetch(self, listing: _Listing, files: Path) -> None:
        report, missing = current_report(), listing.missing(files)
        report.expect(listing.size_bytes)
        report.advance(listing.size_bytes - sum(file.size for file in missing))
        self._check_room(sum(file.size for file in missing))
        transfer = Transfer(self._store, report.advance)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="download") as threads:
            parts = self._partial / "parts"
            # The largest first: the last threads then end at about the same time.
            ordered = sorted(missing, key=lambda file: -file.size)
            fetching = [
                threads.submit(transfer.fetch, file, parts / _short(file.name), files / file.name) for file in ordered
            ]
            try:
                done, _ = wait(fetching, return_when=FIRST_EXCEPTION)
            finally:
                transfer.stop()
        for each in done:
            each.result()

    def _check_room(self, missing_bytes: int) -> None:
        missing_bytes -= sum(part.stat().st_size for part in (self._partial / "parts").iterdir())
        free = shutil.disk_usage(self._folder).free
        if missing_bytes > free:
            reason = f"{missing_bytes / 1e9:.1f} GB are missing and the disk has {free / 1e9:.1f} GB free"
            raise DownloadFailed(
                self._store.uri, f"{reason}; free some space on it, or let {ROOT_VARIABLE} name a larger one"
            )


def _stays_inside(name: str) -> bool:
    # A backslash and a colon separate paths elsewhere.
    return not re.search(r"[\\\0]|^[A-Za-z]:", name) and all(
        step not in ("", ".", "..") and len(step.encode()) <= 255 for step in name.split("/")
    )


def _remove_but(folder: Path, kept: Iterable[Path]) -> None:
    keep = set(kept)
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path not in keep:
            path.unlink()


def _is_file(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size and path.is_file()
    except OSError:
        return False


def _write(path: Path, content: str) -> None:
    written = path.with_suffix(".new")
    written.write_text(content)
    written.replace(path)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
