"""Failures: loads that failed, so that a broken version is refused at once instead of being tried for every request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from registry_serve.errors import LoadFailed

K = TypeVar("K", bound=Hashable)

_MOST_FAILURES = 1000


class _Failure:
    """A load that failed. Its error is kept as type and arguments: a traceback would keep half a model in memory."""

    def __init__(self, error: Exception, pause_s: float) -> None:
        self._type = type(error)
        self._args = error.args
        self.pause_s = pause_s
        self.retry_at = time.monotonic() + pause_s

    def error(self) -> Exception:
        return self._type(*self._args)


class Failures(Generic[K]):
    """Remembers errors by key. Each further failure of a key doubles the pause before it may be tried again.

    Args:
        pause_s: seconds after the first failure.
        at_most_s: the longest pause.
    """

    def __init__(self, pause_s: float, at_most_s: float) -> None:
        self._pause_s = pause_s
        self._at_most_s = at_most_s
        self._failures: OrderedDict[K, _Failure] = OrderedDict()

    def keys(self) -> Iterable[K]:
        """Return the keys that failed and have not succeeded since."""
        return self._failures.keys()

    def check(self, key: K) -> None:
        """Raise the error of a key again, unless its pause is over."""
        failure = self._failures.get(key)
        if failure is not None and time.monotonic() < failure.retry_at:
            raise failure.error()

    def remember(self, key: K, error: Exception) -> bool:
        """Note a failure; an error that says when to come back and is none of the version's own is not noted."""
        if getattr(error, "retry_after", None) is not None and not isinstance(error, LoadFailed):
            return False
        before = self._failures.pop(key, None)
        pause = self._pause_s if before is None else min(before.pause_s * 2, self._at_most_s)
        self._failures[key] = _Failure(error, pause)
        if len(self._failures) > _MOST_FAILURES:
            self._failures.popitem(last=False)
        return True

    def forget(self, key: K) -> None:
        """Note that a key has succeeded."""
        self._failures.pop(key, None)
