"""VersionCache: the loaded versions of a replica.

What it holds to, whatever callers do and whenever they leave:

- One load however many wait for it, and a caller that leaves cancels nothing for the others.
- A load that fails evicts nothing, is told to everyone who waited, and is not tried again for a while.
- A model is closed exactly once, and never while a lease on it is open.
- A pinned version stays.
- The models in memory are bounded: a load waits while those that load or drain take up its room.

A version goes through these states:

    absent ──► loading ──► ready ──► draining ──► absent
                  └──────► failed ──► loading, when its pause is over and it is asked for again

It leaves ready when it is the least recently used and there is no room, when nobody has asked for it in a while, or
when its model is lost.

Plain asyncio, for one event loop; it knows neither models nor registries: how to load and to close is given to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from registry_serve.errors import Draining
from registry_serve.failures import Failures
from registry_serve.leases import Entry, Lease, VersionState
from registry_serve.policies import CachePolicy

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")


class VersionCache(Generic[K, M]):
    """Loaded versions, least recently used first.

    Args:
        close: frees a model; runs as a task of the cache.
        policy: how many to keep.
        size_of: how many bytes a model takes, as far as that is known.
        on_change: called with a key each time its version has come into another state.
    """

    def __init__(
        self,
        close: Callable[[M], Awaitable[None]],
        policy: CachePolicy,
        *,
        size_of: Callable[[M], int] = lambda model: 0,
        on_change: Callable[[K, VersionState], None] = lambda key, state: None,
    ) -> None:
        self.policy = policy
        self.loads = 0
        self.evictions = 0
        self._close = close
        self._size_of = size_of
        self._on_change = on_change
        self._entries: OrderedDict[K, Entry[M]] = OrderedDict()
        self._draining: dict[Entry[M], K] = {}
        self._failures: Failures[K] = Failures(policy.retry_failed_after_s, policy.retry_failed_at_most_s)
        self._pinned: set[K] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = 0
        self._closing = 0
        self._waiting_for_room: list[asyncio.Future[None]] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied: asyncio.Event | None = None

    def lease(self, key: K, load: Callable[[], Awaitable[M]], *, wait_s: float | None = None) -> Lease[M]:
        """Use the model of a key, loading it first where necessary: ``async with cache.lease(...) as lease``.

        Args:
            key: identifies the version.
            load: loads its model; runs as a task of the cache, once for all who ask meanwhile.
            wait_s: how long to wait for a load; it goes on without this caller.

        Raises:
            Draining: the cache is being closed.
            TimeoutError: the load takes longer.
            Exception: whatever the load raised; also for a while afterwards, without another try.
        """
        return Lease(partial(self._entry, key, load), wait_s)

    async def pin(self, key: K, load: Callable[[], Awaitable[M]]) -> None:
        """Load the version of a key and keep it until the cache is closed."""
        self._pinned.add(key)
        async with self.lease(key, load):
            pass

    def discard(self, key: K, model: M) -> None:
        """Unload a version whose model is lost, so that the next request loads it again; a pinned one too."""
        entry = self._entries.get(key)
        if entry is not None and entry.model is model:
            self._retire(key)

    def ready(self) -> list[K]:
        """Return the loaded versions, the least recently used first and pinned ones last."""
        ready = [key for key, entry in self._entries.items() if entry.state is VersionState.READY]
        return sorted(ready, key=self._pinned.__contains__)

    def states(self) -> dict[K, VersionState]:
        """Return every version that the cache knows of, with its state."""
        states = dict.fromkeys(self._draining.values(), VersionState.DRAINING)
        states |= dict.fromkeys(self._failures.keys(), VersionState.FAILED)
        return states | {key: entry.state for key, entry in self._entries.items()}

    def models(self) -> list[tuple[K, M]]:
        """Return the models in memory: those that still drain, then the loaded ones, which may be of the same keys."""
        entries = [*((key, entry) for entry, key in self._draining.items()), *self._entries.items()]
        return [(key, entry.model) for key, entry in entries if entry.model is not None]

    @property
    def bytes(self) -> int:
        """How much the loaded versions take, as far as that is known."""
        return sum(entry.size for entry in self._entries.values())

    async def aclose(self) -> None:
        """Refuse further leases, let open ones and running loads finish, and close every model."""
        self._closed = True
        for key, entry in list(self._entries.items()):
            if not entry.outcome.done():
                entry.outcome.set_exception(Draining())
            self._retire(key)
        if self._expiry is not None:
            self._expiry.cancel()
        if self._emptied is None:
            self._emptied = asyncio.Event()
        self._something_ended()
        await self._emptied.wait()

    # --- loading -----------------------------------------------------------------------------------------------------

    def _entry(self, key: K, load: Callable[[], Awaitable[M]]) -> Entry[M]:
        if self._closed:
            raise Draining
        entry = self._entries.get(key)
        if entry is None:
            self._failures.check(key)
            entry = self._entries[key] = Entry(self._close_if_unused)
            self._tell(key, VersionState.LOADING)
            self._spawn(self._loaded(key, entry, load))
        else:
            self._entries.move_to_end(key)
        return entry

    async def _loaded(self, key: K, entry: Entry[M], load: Callable[[], Awaitable[M]]) -> None:
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
            if self._closed:
                raise Draining
            if self._loading < self.policy.max_concurrent_loads and resident < at_most:
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting_for_room.append(turn)
            await turn

    def _failed(self, key: K, entry: Entry[M], error: Exception) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
        self._draining.pop(entry, None)
        remembered = self._failures.remember(key, error)
        if not entry.outcome.done():
            entry.outcome.set_exception(error)
        self._tell(key, VersionState.FAILED if remembered else VersionState.ABSENT)

    def _arrived(self, key: K, entry: Entry[M], model: M) -> None:
        self._failures.forget(key)
        entry.model = model
        if not entry.outcome.done():
            entry.outcome.set_result(model)
        if entry.state is VersionState.DRAINING:
            self._close_if_unused(entry)
            return
        entry.state = VersionState.READY
        entry.size = self._size_of(model)
        entry.idle_since = time.monotonic()  # whoever was told to come back shall find it
        self._tell(key, VersionState.READY)
        self._evict_beyond_capacity(key)
        self._expire_idle()

    # --- closing -----------------------------------------------------------------------------------------------------

    def _evict_beyond_capacity(self, newest: K) -> None:
        # The newest goes last, and only where there is room for nothing but pinned versions: it then serves those
        # who waited for it and closes.
        candidates = [key for key in self.ready() if key not in self._pinned and key != newest]
        if newest not in self._pinned:
            candidates.append(newest)
        for key in candidates:
            if not self._is_overfull(newest):
                break
            self._retire(key)
            self.evictions += 1

    def _is_overfull(self, newest: K) -> bool:
        ready = self.ready()
        if len(ready) > self.policy.max_models:
            return True
        # A version that is larger than all the room for bytes is served nevertheless, alone beside the pinned ones.
        alone = all(key == newest or key in self._pinned for key in ready)
        return self.policy.max_bytes is not None and self.bytes > self.policy.max_bytes and not alone

    def _expire_idle(self) -> None:
        """Unload what nobody has asked for in a while, and look again when the next one may be due."""
        if self.policy.idle_ttl_s is None or self._closed:
            return
        now = time.monotonic()
        idle = [key for key in self.ready() if key not in self._pinned and self._entries[key].users == 0]
        for key in idle:
            if self._entries[key].idle_since + self.policy.idle_ttl_s <= now:
                self._retire(key)
                self.evictions += 1
        kept = [self._entries[key] for key in self.ready() if key not in self._pinned]
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if kept:
            oldest = min(now if entry.users else entry.idle_since for entry in kept)
            delay_s = oldest + self.policy.idle_ttl_s - now
            self._expiry = asyncio.get_running_loop().call_later(delay_s, self._expire_idle)

    def _retire(self, key: K) -> None:
        """Take a version out of the table; it closes as soon as it is loaded and nobody uses it."""
        entry = self._entries.pop(key)
        entry.state = VersionState.DRAINING
        self._draining[entry] = key
        self._tell(key, VersionState.DRAINING)
        self._close_if_unused(entry)

    def _close_if_unused(self, entry: Entry[M]) -> None:
        if entry.users > 0 or entry.model is None:
            return
        key = self._draining.pop(entry, None)
        if key is not None:
            model, entry.model = entry.model, None
            # The outcome would keep the model in memory for as long as anybody holds the entry.
            entry.outcome = asyncio.get_running_loop().create_future()
            self._closing += 1
            self._spawn(self._closed_model(key, model))

    async def _closed_model(self, key: K, model: M) -> None:
        try:
            await self._close(model)
        except Exception:  # the replica goes on without it
            logger.exception("Closing a model failed.")
        finally:
            self._closing -= 1
            if key not in self._entries:
                self._tell(key, self.states().get(key, VersionState.ABSENT))

    def _tell(self, key: K, state: VersionState) -> None:
        try:
            self._on_change(key, state)
        except Exception:  # who only watches must not stop the cache
            logger.exception("Telling that %s is %s failed.", key, state.value)

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
