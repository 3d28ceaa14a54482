"""Files that came from an artifact store, which may have others by now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from registry_serve.downloaders import ModelFiles

_log = logging.getLogger(__name__)


class FilesOfStore(ModelFiles):
    """The files of a model, which count as damaged also where the store lists other sizes by now.

    A version can be asked for while it is still being copied to the store, and files there can be damaged and mended:
    what was downloaded in between would else be used for ever, since it is what was downloaded.

    Args:
        files: as they were downloaded.
        listed: asks the store for its files: path to size in bytes, None where it does not tell.
    """

    def __init__(self, files: ModelFiles, listed: Callable[[], Mapping[str, int | None]]) -> None:
        """Take the files over."""
        super().__init__(files.directory, files.size_bytes)
        self._files = files
        self._listed = listed

    def release(self) -> None:
        self._files.release()

    def verify(self) -> bool:
        if not self._files.verify():
            return False
        try:
            listed = self._listed()
        except Exception:  # noqa: BLE001 - a store that does not answer is no reason to doubt the files
            _log.warning("The files in %s cannot be compared with the store's.", self.directory, exc_info=True)
            return True
        if all(size is None or _size(self.directory / path) == size for path, size in listed.items()):
            return True
        self.retire()
        return False

    def retire(self) -> None:
        self._files.retire()


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
