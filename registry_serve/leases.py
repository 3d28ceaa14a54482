"""What keeps a loaded model open: its entry in the cache, and the leases on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

M = TypeVar("M")


class VersionState(str, Enum):
    """What a version is doing in this replica."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Entry(Generic[M]):
    """One version in the cache, from the moment its load begins until its model is closed.

    Args:
        on_unused: called each time its last user has let go.

    Attributes:
        outcome: the model, or why there is none; it never belongs to one caller, so none may cancel it.
        model: the loaded model, None before and after.
        size: bytes that the model takes, as far as that is known.
        idle_since: when it was used last, by the monotonic clock.
    """

    def __init__(self, on_unused: Callable[[Entry[M]], None]) -> None:
        self.state = VersionState.LOADING
        self.outcome: asyncio.Future[M] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(_look_at)
        self.model: M | None = None
        self.users = 0
        self.size = 0
        self.idle_since = time.monotonic()
        self._on_unused = on_unused

    async def loaded(self, wait_s: float | None) -> M:
        """Wait for the model, without ever cancelling its load.

        Raises:
            TimeoutError: it takes longer.
            Exception: whatever the load raised.
        """
        if self.model is None:
            await asyncio.wait((self.outcome,), timeout=wait_s)
            if not self.outcome.done():
                raise TimeoutError
        return self.outcome.result()

    def release(self) -> None:
        """Let go of it once."""
        self.users -= 1
        if self.users == 0:
            self.idle_since = time.monotonic()
            self._on_unused(self)


class Lease(Generic[M]):
    """The right to use a model, inside ``async with``. It stays open until all leases and extensions are released.

    Attributes:
        held: whether the model was there in time.
        model: the model, from then on.

    Args:
        find: returns the entry, and starts its load where necessary.
        wait_s: how long to wait for the load.
    """

    __slots__ = ("_entry", "_find", "_wait_s", "held", "model")

    def __init__(self, find: Callable[[], Entry[M]], wait_s: float | None) -> None:
        self._find = find
        self._wait_s = wait_s
        self.held = False

    async def __aenter__(self) -> Lease[M]:
        """Wait for the model, and keep it open from now on."""
        self._entry = self._find()
        self._entry.users += 1
        try:
            self.model = await self._entry.loaded(self._wait_s)
        except BaseException:
            self._entry.release()
            raise
        self.held = True
        return self

    async def __aexit__(self, *error: object) -> None:
        """Release the lease."""
        self._entry.release()

    def extend(self) -> Callable[[], None]:
        """Keep the model open beyond this lease, for work that goes on after its caller has left.

        Returns:
            A function that ends the extension. Call it once, on the event loop.
        """
        self._entry.users += 1
        return self._entry.release


def _look_at(outcome: asyncio.Future[M]) -> None:
    """Look at a load's error even when nobody waits for it any more, so that asyncio does not complain."""
    if not outcome.cancelled():
        outcome.exception()
