"""How far downloads are: for who waits for one, for the log, and for other processes of the node."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path

#: Seconds between two looks at a download, and between two lines about it in the log.
TOLD_EVERY_S, LOGGED_EVERY_S = 0.5, 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """A download under way.

    Attributes:
        what: is downloaded; never with credentials.
        done_bytes: that are here, those of an earlier attempt included.
        total_bytes: of all of it; None where that is not known.
        started: seconds since 1970.
    """

    what: str
    done_bytes: int
    total_bytes: int | None
    started: float

    @property
    def elapsed_s(self) -> float:
        """Seconds since it started."""
        return max(0.0, time.time() - self.started)

    def __str__(self) -> str:
        """Return one line for people."""
        line = f"{self.what}: {self.done_bytes / 1e6:,.1f} MB"
        if self.total_bytes:
            line += f" of {self.total_bytes / 1e6:,.1f} MB ({self.done_bytes / self.total_bytes:.0%})"
        return f"{line} in {self.elapsed_s:.0f} s"


class Report:
    """What a download says about itself; any thread may say it.

    Args:
        what: is downloaded.
        file: where other processes look; None: nowhere.
        on_progress: gets it twice a second where it has changed, at the beginning and at the end.
    """

    def __init__(self, what: str, file: Path | None, on_progress: Callable[[Progress], None]) -> None:
        self._progress = Progress(what, 0, None, time.time())
        self._file = file
        self._on_progress = on_progress
        self._changing = threading.Lock()
        self._over = threading.Event()

    def expect(self, total_bytes: int | None) -> None:
        """Say how many bytes it will be."""
        with self._changing:
            self._progress = replace(self._progress, total_bytes=total_bytes)

    def advance(self, size_bytes: int) -> None:
        """Say that so many more bytes are here; fewer than 0 where some are fetched again."""
        with self._changing:
            self._progress = replace(self._progress, done_bytes=max(0, self._progress.done_bytes + size_bytes))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell it for as long as this lasts."""
        telling = threading.Thread(target=self._keep_telling, name="download progress", daemon=True)
        self._tell()
        telling.start()
        reporting = _current.set(self)
        try:
            yield
        finally:
            _current.reset(reporting)
            self._over.set()
            telling.join()
            self._tell()
            if self._file is not None:
                self._file.unlink(missing_ok=True)

    def _keep_telling(self) -> None:
        told, logged_at = self._progress, time.monotonic()
        while not self._over.wait(TOLD_EVERY_S):
            if self._progress != told:
                told = self._progress
                self._tell()
            if time.monotonic() - logged_at >= LOGGED_EVERY_S:
                logged_at = time.monotonic()
                _log.info("Downloading %s", self._progress)

    def _tell(self) -> None:
        progress = self._progress
        try:
            if self._file is not None:
                written = self._file.with_suffix(".new")
                written.write_text(json.dumps(asdict(progress)))
                written.replace(self._file)
        except OSError:
            pass  # a disk that is full fails the download itself, which says so
        tell(self._on_progress, progress)


def tell(on_progress: Callable[[Progress], None], progress: Progress) -> None:
    """Call what somebody wants to be called; if it fails, that is no reason to end a download."""
    try:
        on_progress(progress)
    except Exception:  # noqa: BLE001 - it is anybody's code
        _log.exception("The progress of a download could not be told.")


def ignore(progress: Progress) -> None:
    """Tell nobody."""


#: What the function that is downloading reports to.
_current: ContextVar[Report | None] = ContextVar("registry_serve_download", default=None)


def current_report() -> Report:
    """Return what the download that this is called from reports to; a downloader may use it or not.

    Outside of :func:`fetch` it is one that nobody reads.
    """
    return _current.get() or Report("", None, ignore)


def read_progress(file: Path) -> Progress | None:
    """Return what another process has written, or None: it has written nothing."""
    try:
        return Progress(**json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):
        return None
