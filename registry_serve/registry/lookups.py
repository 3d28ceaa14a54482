"""Questions whose answers are believed for some seconds. Plain asyncio over a blocking function.

For each key, in this order:

1. an answer younger than ``fresh_for_s`` is given at once;
2. else the question is asked; all who want to know the same wait for the one call, and a caller that goes away
   does not end it;
3. no answer in ``timeout_s`` is a ``RegistryUnavailable``; the last known answer is then given, however old, and
   nobody asks again for ``fresh_for_s``. Without one, the error is raised, for as long.

An answer that says "no" (any other error) replaces what was known before, and is believed as long.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from registry_serve.errors import Draining, RegistryServeError, RegistryUnavailable
from registry_serve.policies import RegistryAddress

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: How many answers are kept; the longest unused goes first.
MOST_ANSWERS = 1024
#: A failure that took longer is taken for the whole registry's: no other key is asked for ``fresh_for_s`` either,
#: or else each of them would keep its callers waiting as long.
SLOW_FAILURE_S = 1.0


class _Answer(NamedTuple, Generic[V]):
    value: V | None
    error: RegistryServeError | None
    asked_at: float


class Lookups(Generic[K, V]):
    """Answers by key, asked for when they are needed and shared by all who ask.

    Good answers and refusals are kept in two tables and asked for by two pools of threads: whoever sends endless
    names that do not exist neither pushes out what is known nor makes its renewal wait in line.

    Args:
        ask: the blocking question. It raises errors of ours; it is called from threads.
        address: gives ``timeout_s`` and ``fresh_for_s``.
        clock: seconds, monotonic.
    """

    def __init__(
        self, ask: Callable[[K], V], address: RegistryAddress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep the settings; threads start with the first question."""
        self._ask = ask
        self._address = address
        self._clock = clock
        self._known: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._refused: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._flights: dict[K, asyncio.Task[_Answer[V]]] = {}
        self._for_known = ThreadPoolExecutor(2, "registry-known")
        self._for_others = ThreadPoolExecutor(2, "registry-others")
        self._silent_until = float("-inf")
        self._closed = False

    def assume(self, key: K, value: V) -> None:
        """Take this for the last known answer, but ask before it is given while the registry answers."""
        self._known[key] = _Answer(value, None, float("-inf"))

    async def get(self, key: K) -> V:
        """Return the answer.

        Raises:
            RegistryUnavailable: no answer, and none known from before.
            Draining: these lookups were closed.
            RegistryServeError: whatever else the question raised.
        """
        answer = self._recall(key) or await self._join(key)
        if answer.error is not None:
            # A new object each time: one that is raised again and again collects tracebacks.
            raise type(answer.error)(*answer.error.args)
        assert answer.value is not None
        return answer.value

    async def aclose(self) -> None:
        """Ask nothing more; who still waits gets ``Draining``."""
        self._closed = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        for pool in (self._for_known, self._for_others):
            pool.shutdown(wait=False, cancel_futures=True)

    def _recall(self, key: K) -> _Answer[V] | None:
        """Return what may be said without asking, if anything."""
        table = self._known if key in self._known else self._refused
        answer = table.get(key)
        if answer is not None:
            table.move_to_end(key)
            if self._clock() - answer.asked_at < self._address.fresh_for_s:
                return answer
        if self._clock() < self._silent_until:
            return self._without_registry(key, RegistryUnavailable("it did not answer a moment ago"))
        return None

    async def _join(self, key: K) -> _Answer[V]:
        """Wait for the one call that is under way for this key, starting it if there is none."""
        if self._closed:
            raise Draining()
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._fly(key))
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        try:
            return await asyncio.shield(flight)
        except asyncio.CancelledError:
            # Either our caller has gone, or the flight was cancelled by aclose.
            if flight.cancelled() and self._closed:
                raise Draining() from None
            raise

    async def _fly(self, key: K) -> _Answer[V]:
        """Ask, and remember what came of it. Raises nothing but its own cancellation."""
        started = self._clock()
        pool = self._for_known if key in self._known else self._for_others
        call = asyncio.get_running_loop().run_in_executor(pool, self._ask, key)
        try:
            value = await asyncio.wait_for(call, self._address.timeout_s)
        except asyncio.TimeoutError:
            return self._failed(key, RegistryUnavailable(f"no answer in {self._address.timeout_s:g} s"), started)
        except RegistryUnavailable as error:
            return self._failed(key, error, started)
        except RegistryServeError as error:
            self._known.pop(key, None)
            return self._remember(self._refused, key, _Answer(None, error, self._clock()))
        self._refused.pop(key, None)
        return self._remember(self._known, key, _Answer(value, None, self._clock()))

    def _failed(self, key: K, error: RegistryUnavailable, started: float) -> _Answer[V]:
        now = self._clock()
        if now - started > SLOW_FAILURE_S:
            self._silent_until = now + self._address.fresh_for_s
        answer = self._without_registry(key, error)
        return self._remember(self._refused if answer.value is None else self._known, key, answer)

    def _without_registry(self, key: K, error: RegistryUnavailable) -> _Answer[V]:
        """Return the last known answer, as if it had been given just now, or else the error."""
        last = self._known.get(key) or self._refused.get(key)
        return (last or _Answer(None, error, 0))._replace(asked_at=self._clock())

    @staticmethod
    def _remember(table: OrderedDict[K, _Answer[V]], key: K, answer: _Answer[V]) -> _Answer[V]:
        table[key] = answer
        table.move_to_end(key)
        while len(table) > MOST_ANSWERS:
            table.popitem(last=False)
        return answer
