"""Admission: how many requests a replica holds at a time, and what has become of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from registry_serve.errors import Draining, RegistryServeError, TooManyRequests
from registry_serve.models.served import ServedModel
from registry_serve.rates import RateLimit


@dataclass
class Counts:
    """What happened since the replica started."""

    requests: int = 0
    answered: int = 0
    calls: int = 0
    undeclared_answers: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, model: ServedModel) -> None:
        """Add what a model has counted itself."""
        self.calls += model.calls
        self.undeclared_answers += model.undeclared_answers


class Admission:
    """Lets requests in while there is room.

    Attributes:
        pending: requests that are in.
        draining: none are let in any more.
        counts: how they ended.

    Args:
        most: how many may be in at a time.
        rate: how many are let in per second, if limited.
    """

    def __init__(self, most: int, rate: RateLimit | None = None) -> None:
        self.pending = 0
        self.draining = False
        self.counts = Counts()
        self._most = most
        self._rate = rate

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Let a request in if there is room, and count how it ends.

        Raises:
            Draining: the replica is shutting down.
            RateLimited: there were too many within the last second.
            TooManyRequests: there is no room.
        """
        self.counts.requests += 1
        try:
            if self.draining:
                raise Draining
            if self._rate is not None:
                self._rate.take()
            if self.pending >= self._most:
                raise TooManyRequests(self._most)
            self.pending += 1
            try:
                yield
            finally:
                self.pending -= 1
        except RegistryServeError as error:
            self.counts.errors[error.code] = self.counts.errors.get(error.code, 0) + 1
            raise
        self.counts.answered += 1
