"""The Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from registry_serve.downloaders.artifacts import is_disk_full
from registry_serve.downloaders.plugins import checks_itself, installed, without_credentials
from registry_serve.downloaders.progress import Report, current_report
from registry_serve.errors import DownloadFailed

_REPOSITORY = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


@checks_itself
def download(hf_path: str) -> Path:
    """Download a model into Hugging Face's cache and return its snapshot.

    Args:
        hf_path: ``organisation/name``, or ``organisation/name@revision`` with a branch, a tag or a commit.
    """
    parts = _REPOSITORY.fullmatch(hf_path) if isinstance(hf_path, str) else None
    if parts is None:
        shown = without_credentials(str(hf_path))
        raise DownloadFailed(shown or "An empty hf_path", "it is no name such as organisation/name")
    hub = installed("huggingface_hub", "transformers", hf_path)
    with _explained(hf_path):
        snapshot = hub.snapshot_download(parts["name"], revision=parts["revision"], tqdm_class=_bars(current_report()))
    return Path(snapshot)


def _bars(report: Report) -> type:
    """Make a progress bar that draws nothing and reports the bytes."""

    class Bar:
        #: What a bar would draw from.
        format_dict: ClassVar[dict[str, Any]] = {}

        def __init__(self, iterable: Iterable[Any] = (), **shown: Any) -> None:
            self._iterable = iterable
            # One bar counts files; of two that count bytes, one counts what comes, and the other what is there.
            self._counts = shown.get("unit") == "B" and not str(shown.get("desc", "")).startswith("Downloading")
            self._total: int | None = shown.get("total")
            self.n = 0

        @property
        def total(self) -> int | None:
            return self._total

        @total.setter
        def total(self, total: int | None) -> None:
            self._total = total
            if self._counts:
                report.expect(total)

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if self._counts:
                report.advance(int(n or 0))

        def __iter__(self) -> Iterator[Any]:
            return iter(self._iterable)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *raised: object) -> None: ...

        def _draw(self, *_: object, **__: object) -> None: ...

        close = refresh = set_description = set_description_str = set_postfix_str = _draw

    return Bar


@contextmanager
def _explained(hf_path: str) -> Iterator[None]:
    errors = installed("huggingface_hub.errors", "transformers", hf_path)
    try:
        yield
    except errors.GatedRepoError as error:
        reason = "its authors must grant access; ask for it on its page, and set HF_TOKEN"
        raise DownloadFailed(hf_path, reason) from error
    except errors.RepositoryNotFoundError as error:
        reason = "the hub has no such model, or it is private; check the name, and set HF_TOKEN for a private one"
        raise DownloadFailed(hf_path, reason) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadFailed(hf_path, "the model has no such revision; check what follows the @") from error
    except errors.HFValidationError as error:
        raise DownloadFailed(hf_path, "it is no name such as organisation/name") from error
    except errors.LocalEntryNotFoundError as error:
        reason = (
            "the hub does not answer and the cache has no complete copy; check the network, HF_ENDPOINT and proxies"
        )
        raise DownloadFailed(hf_path, reason) from error
    except OSError as error:
        if is_disk_full(error):
            raise DownloadFailed(
                hf_path, "the disk is full; free some space, or let HF_HOME name a larger one"
            ) from error
        raise DownloadFailed(hf_path, f"it broke off ({type(error).__name__}); the next start goes on") from error
