"""VersionCache: the loaded versions of a replica.

What it holds to, whatever callers do and whenever they leave:

- One load however many wait for it, and a caller that leaves cancels nothing for the others.
- A load that fails evicts nothing, is told to everyone who waited, and is not tried again for a while.
- A model is closed exactly once, and never while a lease on it is open.
- A pinned version stays.

A version goes through these states (one that is not in the table is absent):

    loading ──► ready ──► draining ──► (closed)
       └──────► failed ──► (forgotten when its pause is over and it is asked for again)

Plain asyncio, for one event loop; it knows neither models nor registries: how to load and to close is given to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Generic, TypeVar

from registry_serve.errors import Draining
from registry_serve.policies import CachePolicy

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")


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
        self.task: asyncio.Task[M] | None = None
        self.model: M | None = None
        self.users = 0
        self.pinned = False


class _Failure:
    def __init__(self, error: Exception, pause_s: float) -> None:
        self.error = error
        self.pause_s = pause_s
        self.retry_at = time.monotonic() + pause_s


class VersionCache(Generic[K, M]):
    """Loaded versions, least recently used first.

    Args:
        load: loads the model of a key; runs as a task of the cache.
        close: frees a model; runs as a task of the cache.
        policy: how many to keep.
        on_ready: called with a key each time its model has been loaded.
    """

    def __init__(
        self,
        load: Callable[[K], Awaitable[M]],
        close: Callable[[M], Awaitable[None]],
        policy: CachePolicy,
        on_ready: Callable[[K], None] | None = None,
    ) -> None:
        self._load = load
        self._close = close
        self.policy = policy
        self._on_ready = on_ready
        self._entries: OrderedDict[K, _Entry[M]] = OrderedDict()
        self._draining: dict[int, tuple[K, _Entry[M]]] = {}
        self._failures: OrderedDict[K, _Failure] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Semaphore | None = None
        self._closed = False
        self._emptied: asyncio.Event | None = None
        self.loads = 0
        self.evictions = 0

    @asynccontextmanager
    async def lease(self, key: K) -> AsyncIterator[Lease[M]]:
        """Use the model of a key, loading it first where necessary.

        Raises:
            Draining: the cache is being closed.
            Exception: whatever the load raised; also for a while afterwards, without another try.
        """
        entry = self._entry(key)
        entry.users += 1
        try:
            model = await self._model_of(entry)
            if key in self._entries and self._entries[key] is entry:
                self._entries.move_to_end(key)
            yield Lease(model, entry, self._release)
        finally:
            self._release(entry)

    async def pin(self, key: K) -> None:
        """Load the version of a key and keep it until the cache is closed."""
        self._entry(key).pinned = True
        async with self.lease(key):
            pass

    def states(self) -> dict[K, VersionState]:
        """Return every version that the cache knows of, with its state."""
        states = {key: VersionState.DRAINING for key, _ in self._draining.values()}
        states |= dict.fromkeys(self._failures, VersionState.FAILED)
        return states | {key: entry.state for key, entry in self._entries.items()}

    async def aclose(self) -> None:
        """Refuse further leases, let open ones finish, and close every model."""
        self._closed = True
        for key in list(self._entries):
            self._retire(key)
        for _, entry in list(self._draining.values()):
            if entry.task is not None and not entry.task.done():
                entry.task.cancel()
        self._emptied = asyncio.Event()
        self._tell_if_empty()
        await self._emptied.wait()

    def _entry(self, key: K) -> _Entry[M]:
        if self._closed:
            raise Draining
        entry = self._entries.get(key)
        if entry is None:
            self._refuse_if_failed(key)
            entry = self._entries[key] = _Entry()
            entry.task = asyncio.get_running_loop().create_task(self._loaded(key, entry))
            entry.task.add_done_callback(_retrieve)
        return entry

    @staticmethod
    async def _model_of(entry: _Entry[M]) -> M:
        if entry.model is not None:
            return entry.model
        task = entry.task
        assert task is not None
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Draining from None
            raise

    async def _loaded(self, key: K, entry: _Entry[M]) -> M:
        if self._loading is None:
            self._loading = asyncio.Semaphore(self.policy.max_concurrent_loads)
        try:
            async with self._loading:
                self.loads += 1
                model = await self._load(key)
        except BaseException as error:
            self._entries.pop(key, None)
            # An error that says when to come back (the registry is down) is not the version's fault.
            if isinstance(error, Exception) and getattr(error, "retry_after", None) is None:
                self._remember_failure(key, error)
            raise
        self._failures.pop(key, None)
        entry.model, entry.task = model, None
        if entry.state is VersionState.LOADING:
            entry.state = VersionState.READY
            self._evict_beyond_capacity(key)
            if self._on_ready is not None:
                self._on_ready(key)
        return model

    def _evict_beyond_capacity(self, newest: K) -> None:
        ready = [key for key, entry in self._entries.items() if entry.state is VersionState.READY]
        surplus = len(ready) - self.policy.max_models
        # The newest goes last, and only where there is room for nothing but pinned versions: it then serves those
        # who waited for it and closes.
        candidates = [key for key in ready if key != newest and not self._entries[key].pinned]
        if not self._entries[newest].pinned:
            candidates.append(newest)
        for key in candidates[: max(surplus, 0)]:
            self._retire(key)
            self.evictions += 1

    def _retire(self, key: K) -> None:
        """Take a version out of the table; it closes as soon as nobody uses it."""
        entry = self._entries.pop(key)
        entry.state = VersionState.DRAINING
        self._draining[id(entry)] = (key, entry)
        entry.users += 1
        self._release(entry)

    def _release(self, entry: _Entry[M]) -> None:
        entry.users -= 1
        if entry.users > 0 or id(entry) not in self._draining:
            return
        del self._draining[id(entry)]
        if entry.model is not None:
            task = asyncio.get_running_loop().create_task(self._closed_model(entry))
            self._tasks.add(task)
            task.add_done_callback(self._forget)
        self._tell_if_empty()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if self._emptied is not None and not self._draining and not self._tasks:
            self._emptied.set()

    async def _closed_model(self, entry: _Entry[M]) -> None:
        model, entry.model = entry.model, None
        assert model is not None
        try:
            await self._close(model)
        except Exception:  # the replica goes on without it
            logger.exception("Closing a model failed.")

    def _refuse_if_failed(self, key: K) -> None:
        failure = self._failures.get(key)
        if failure is not None and time.monotonic() < failure.retry_at:
            raise failure.error.with_traceback(None)

    def _remember_failure(self, key: K, error: Exception) -> None:
        before = self._failures.pop(key, None)
        pause = self.policy.retry_failed_after_s
        if before is not None:
            pause = min(before.pause_s * 2, self.policy.retry_failed_at_most_s)
        self._failures[key] = _Failure(error, pause)
        while len(self._failures) > 1000:
            self._failures.popitem(last=False)


def _retrieve(task: asyncio.Task[M]) -> None:
    """Look at a load's error even when nobody waits for it any more, so that asyncio does not complain."""
    if not task.cancelled():
        task.exception()
