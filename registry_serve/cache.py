"""VersionCache: the loaded versions of a replica.

What it holds to, whatever callers do and whenever they leave:

- One load however many wait for it, and a caller that leaves cancels nothing for the others.
- A load that fails evicts nothing, is told to everyone who waited, and is not tried again for a while.
- A model is closed exactly once, and never while a lease on it is open.
- A pinned version stays.
- The models in memory are bounded: a load waits while those that load or drain take up its room.

A version goes through these states (one that is not in the table is absent):

    loading ──► ready ──► draining ──► (closed)
       └──────► failed ──► (tried again when its pause is over and it is asked for)

Plain asyncio, for one event loop; it knows neither models nor registries: how to load and to close is given to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, Generic, TypeVar

from registry_serve.errors import Draining
from registry_serve.policies import CachePolicy

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")

_MOST_FAILURES = 1000


class VersionState(str, Enum):
    """What a version in the table is doing."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lease(Generic[M]):
    """The right to use a model. The model stays open until the lease and all its extensions are released."""

    def __init__(self, model: M, entry: _Entry[M], release: Callable[[_Entry[M]], None]) -> None:
        self.model = model
        self._entry = entry
        self._release = release

    def extend(self) -> Callable[[], None]:
        """Keep the model open beyond this lease, for work that goes on after its caller has left.

        Returns:
            A function that ends the extension. Call it once, on the event loop.
        """
        self._entry.users += 1
        return lambda: self._release(self._entry)


class _Entry(Generic[M]):
    def __init__(self) -> None:
        self.state = VersionState.LOADING
        self.outcome: asyncio.Future[M] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(_look_at)
        self.model: M | None = None
        self.users = 0
        self.pinned = False


class _Failure:
    """A load that failed. Its error is kept as type and arguments: a traceback would keep half a model in memory."""

    def __init__(self, error: Exception, pause_s: float) -> None:
        self._type = type(error)
        self._args = error.args
        self.pause_s = pause_s
        self.retry_at = time.monotonic() + pause_s

    def error(self) -> Exception:
        return self._type(*self._args)


class VersionCache(Generic[K, M]):
    """Loaded versions, least recently used first.

    Args:
        close: frees a model; runs as a task of the cache.
        policy: how many to keep.
        on_ready: called with a key each time its model has been loaded.
    """

    def __init__(
        self,
        close: Callable[[M], Awaitable[None]],
        policy: CachePolicy,
        on_ready: Callable[[K], None] | None = None,
    ) -> None:
        self.policy = policy
        self.loads = 0
        self.evictions = 0
        self._close = close
        self._on_ready = on_ready
        self._entries: OrderedDict[K, _Entry[M]] = OrderedDict()
        self._draining: dict[_Entry[M], K] = {}
        self._failures: OrderedDict[K, _Failure] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = 0
        self._closing = 0
        self._waiting_for_room: list[asyncio.Future[None]] = []
        self._closed = False
        self._emptied: asyncio.Event | None = None

    @asynccontextmanager
    async def lease(self, key: K, load: Callable[[], Awaitable[M]]) -> AsyncIterator[Lease[M]]:
        """Use the model of a key, loading it first where necessary.

        Args:
            key: identifies the version.
            load: loads its model; runs as a task of the cache, once for all who ask meanwhile.

        Raises:
            Draining: the cache is being closed.
            Exception: whatever the load raised; also for a while afterwards, without another try.
        """
        entry = self._entry(key, load)
        entry.users += 1
        try:
            model = entry.model if entry.model is not None else await asyncio.shield(entry.outcome)
            if self._entries.get(key) is entry:
                self._entries.move_to_end(key)
            yield Lease(model, entry, self._release)
        finally:
            self._release(entry)

    async def pin(self, key: K, load: Callable[[], Awaitable[M]]) -> None:
        """Load the version of a key and keep it until the cache is closed."""
        self._entry(key, load).pinned = True
        async with self.lease(key, load):
            pass

    def ready(self) -> list[K]:
        """Return the loaded versions, the least recently used first and pinned ones last."""
        ready = [key for key, entry in self._entries.items() if entry.state is VersionState.READY]
        return sorted(ready, key=lambda key: self._entries[key].pinned)

    def states(self) -> dict[K, VersionState]:
        """Return every version that the cache knows of, with its state."""
        states = dict.fromkeys(self._draining.values(), VersionState.DRAINING)
        states |= dict.fromkeys(self._failures, VersionState.FAILED)
        return states | {key: entry.state for key, entry in self._entries.items()}

    async def aclose(self) -> None:
        """Refuse further leases, let open ones and running loads finish, and close every model."""
        self._closed = True
        for key, entry in list(self._entries.items()):
            if not entry.outcome.done():
                entry.outcome.set_exception(Draining())
            self._retire(key)
        if self._emptied is None:
            self._emptied = asyncio.Event()
        self._something_ended()
        await self._emptied.wait()

    # --- loading -----------------------------------------------------------------------------------------------------

    def _entry(self, key: K, load: Callable[[], Awaitable[M]]) -> _Entry[M]:
        if self._closed:
            raise Draining
        entry = self._entries.get(key)
        if entry is None:
            failure = self._failures.get(key)
            if failure is not None and time.monotonic() < failure.retry_at:
                raise failure.error()
            entry = self._entries[key] = _Entry()
            self._spawn(self._loaded(key, entry, load))
        return entry

    async def _loaded(self, key: K, entry: _Entry[M], load: Callable[[], Awaitable[M]]) -> None:
        try:
            await self._room()
            self._loading += 1
            self.loads += 1
            try:
                model = await load()
            finally:
                self._loading -= 1
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self._failed(key, entry, error)
        else:
            self._arrived(key, entry, model)

    async def _room(self) -> None:
        """Wait until one more model may be in memory."""
        while True:
            resident = len(self.ready()) + len(self._draining) + self._loading + self._closing
            at_most = self.policy.max_models + self.policy.max_concurrent_loads
            if self._closed or (self._loading < self.policy.max_concurrent_loads and resident < at_most):
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting_for_room.append(turn)
            await turn

    def _failed(self, key: K, entry: _Entry[M], error: Exception) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
        self._draining.pop(entry, None)
        # An error that says when to come back (the registry is down) is not the version's fault.
        if getattr(error, "retry_after", None) is None:
            self._remember_failure(key, error)
        if not entry.outcome.done():
            entry.outcome.set_exception(error)

    def _arrived(self, key: K, entry: _Entry[M], model: M) -> None:
        self._failures.pop(key, None)
        entry.model = model
        if not entry.outcome.done():
            entry.outcome.set_result(model)
        if entry.state is VersionState.DRAINING:
            self._close_if_unused(entry)
            return
        entry.state = VersionState.READY
        self._evict_beyond_capacity(key)
        if self._on_ready is not None:
            self._on_ready(key)

    def _remember_failure(self, key: K, error: Exception) -> None:
        before = self._failures.pop(key, None)
        pause = self.policy.retry_failed_after_s
        if before is not None:
            pause = min(before.pause_s * 2, self.policy.retry_failed_at_most_s)
        self._failures[key] = _Failure(error, pause)
        while len(self._failures) > _MOST_FAILURES:
            self._failures.popitem(last=False)

    # --- closing -----------------------------------------------------------------------------------------------------

    def _evict_beyond_capacity(self, newest: K) -> None:
        ready = self.ready()
        # The newest goes last, and only where there is room for nothing but pinned versions: it then serves those
        # who waited for it and closes.
        candidates = [key for key in ready if key != newest and not self._entries[key].pinned]
        if not self._entries[newest].pinned:
            candidates.append(newest)
        for key in candidates[: max(len(ready) - self.policy.max_models, 0)]:
            self._retire(key)
            self.evictions += 1

    def _retire(self, key: K) -> None:
        """Take a version out of the table; it closes as soon as it is loaded and nobody uses it."""
        entry = self._entries.pop(key)
        entry.state = VersionState.DRAINING
        self._draining[entry] = key
        self._close_if_unused(entry)

    def _release(self, entry: _Entry[M]) -> None:
        entry.users -= 1
        self._close_if_unused(entry)

    def _close_if_unused(self, entry: _Entry[M]) -> None:
        if entry.users == 0 and entry.model is not None and self._draining.pop(entry, None) is not None:
            model, entry.model = entry.model, None
            # The outcome would keep the model in memory for as long as anybody holds the entry.
            entry.outcome = asyncio.get_running_loop().create_future()
            self._closing += 1
            self._spawn(self._closed_model(model))

    async def _closed_model(self, model: M) -> None:
        try:
            await self._close(model)
        except Exception:  # the replica goes on without it
            logger.exception("Closing a model failed.")
        finally:
            self._closing -= 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._something_ended)

    def _something_ended(self, task: asyncio.Task[None] | None = None) -> None:
        self._tasks.discard(task)
        waiting, self._waiting_for_room = self._waiting_for_room, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
        if self._emptied is not None and not self._draining and not self._tasks:
            self._emptied.set()


def _look_at(outcome: asyncio.Future[M]) -> None:
    """Look at a load's error even when nobody waits for it any more, so that asyncio does not complain."""
    if not outcome.cancelled():
        outcome.exception()
