"""MLflow's searches answer page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

#: Entries per request; servers allow more, but an answer should come within the time-out.
PAGE = 1000

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Page(Protocol[T_co]):
    """What a search returns: a list that has the token of the next page."""

    token: str | None

    def __iter__(self) -> Iterator[T_co]: ...


def pages(search: Callable[..., Page[T]], **query: Any) -> Iterator[T]:
    """Go through the entries of all pages.

    Args:
        search: a method of ``MlflowClient`` that takes ``max_results`` and ``page_token``.
        query: its other arguments.
    """
    token: str | None = None
    while True:
        page = search(max_results=PAGE, page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return
