"""Questions whose answers are believed for some seconds. Plain asyncio over a blocking function.

For each key, in this order:

1. an answer younger than ``fresh_for_s`` is given at once; one that says "no" (any error but
   ``RegistryUnavailable``) is believed for ``NO_FRESH_S`` at most;
2. else the question is asked; all who want to know the same wait for the one call, and a caller that goes away
   does not end it. Where a good answer is known from before, they wait ``RENEWAL_WAIT_S`` and then take that one,
   while the call goes on;
3. no answer in ``timeout_s`` is a ``RegistryUnavailable``; the last known answer is then given, however old, and
   nobody asks again for ``fresh_for_s``. Without one, the error is raised, for as long; an error that came at once,
   for ``NO_FRESH_S`` at most.

A "no" replaces what was known before. Time that a question spends in line for a thread says nothing about the
registry: it ends in a ``RegistryUnavailable`` for its own callers, and nothing is remembered of it.
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
#: How long a "no" is believed: somebody who asks, registers what was missing and asks again should not wait, and
#: one question a second for each wrong name is nothing to a registry.
NO_FRESH_S = 1.0
#: How long the renewal of a known answer is waited for: ten times what a healthy registry takes, so that an alias
#: that was moved is seen by the first who asks, and little beside the time that a prediction takes.
RENEWAL_WAIT_S = 0.2
#: How many unknown keys may wait for a thread; further ones are turned away. At 0.1 s for each question, the last
#: one waits three seconds.
MOST_WAITING = 64


class _Answer(NamedTuple, Generic[V]):
    """``fallback``: the registry did not say so itself; this is what was known, or the error, when it failed."""

    value: V | None
    error: RegistryServeError | None
    believed_until: float
    fallback: bool = False


class _Flight(NamedTuple, Generic[V]):
    """One call that is under way, and the event loop's time when it was asked for."""

    task: asyncio.Task[_Answer[V]]
    began_at: float


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
        self._flights: dict[K, _Flight[V]] = {}
        self._in_line: set[K] = set()
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

    def answered(self, key: K) -> bool:
        """Tell whether the registry itself gave the last answer for this key, and has not gone silent since."""
        last = self._last(key)
        return last is not None and not last.fallback and self._clock() >= self._silent_until

    async def aclose(self) -> None:
        """Ask nothing more; who still waits gets ``Draining``."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in (self._for_known, self._for_others):
            pool.shutdown(wait=False, cancel_futures=True)

    def _recall(self, key: K) -> _Answer[V] | None:
        """Return what may be said without asking, if anything."""
        table = self._known if key in self._known else self._refused
        answer = table.get(key)
        if answer is not None:
            table.move_to_end(key)
            if self._clock() < answer.believed_until:
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
            if key not in self._known and len(self._in_line) >= MOST_WAITING:
                return self._without_registry(key, RegistryUnavailable("too many unknown versions were asked for"))
            flight = self._start(key)
        last = self._known.get(key)
        # Counted from the start of the call: who comes later, while it hangs, does not wait at all.
        waited_s = asyncio.get_running_loop().time() - flight.began_at
        await asyncio.wait((flight.task,), timeout=None if last is None else max(0.0, RENEWAL_WAIT_S - waited_s))
        if last is not None and not flight.task.done():
            return last
        if flight.task.cancelled():
            raise Draining()
        return flight.task.result()

    def _start(self, key: K) -> _Flight[V]:
        if key not in self._known:
            self._in_line.add(key)
        task = asyncio.create_task(self._fly(key))
        task.add_done_callback(lambda _: self._land(key))
        flight = self._flights[key] = _Flight(task, asyncio.get_running_loop().time())
        return flight

    def _land(self, key: K) -> None:
        self._in_line.discard(key)
        self._flights.pop(key, None)

    async def _fly(self, key: K) -> _Answer[V]:
        """Ask, and remember what came of it. Raises nothing but its own cancellation."""
        try:
            call = await self._taken_up(key)
        except asyncio.TimeoutError:
            return self._without_registry(key, RegistryUnavailable("too much is asked of it"))
        started = self._clock()
        try:
            value = await asyncio.wait_for(call, self._address.timeout_s)
        except asyncio.TimeoutError:
            return self._failed(key, RegistryUnavailable(f"no answer in {self._address.timeout_s:g} s"), started)
        except RegistryUnavailable as error:
            return self._failed(key, error, started)
        except RegistryServeError as error:
            self._known.pop(key, None)
            believed_for_s = min(NO_FRESH_S, self._address.fresh_for_s)
            return self._remember(self._refused, key, _Answer(None, error, self._clock() + believed_for_s))
        self._refused.pop(key, None)
        return self._remember(self._known, key, _Answer(value, None, self._clock() + self._address.fresh_for_s))

    async def _taken_up(self, key: K) -> asyncio.Future[V]:
        """Put the question in line, and return the call when a thread has begun it.

        Raises:
            asyncio.TimeoutError: no thread was free for ``timeout_s``; the question is not asked.
        """
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def ask() -> V:
            loop.call_soon_threadsafe(begun.set)
            return self._ask(key)

        call = loop.run_in_executor(self._for_known if key in self._known else self._for_others, ask)
        try:
            await asyncio.wait_for(begun.wait(), self._address.timeout_s)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            call.cancel()
            raise
        finally:
            self._in_line.discard(key)
        return call

    def _failed(self, key: K, error: RegistryUnavailable, started: float) -> _Answer[V]:
        now = self._clock()
        answer = self._without_registry(key, error)
        if now - started > SLOW_FAILURE_S:
            self._silent_until = now + self._address.fresh_for_s
        elif answer.value is None:
            # Quickly asked again: what failed at once may have been one lost connection.
            answer = answer._replace(believed_until=now + min(NO_FRESH_S, self._address.fresh_for_s))
        return self._remember(self._refused if answer.value is None else self._known, key, answer)

    def _without_registry(self, key: K, error: RegistryUnavailable) -> _Answer[V]:
        """Return the last known answer, as if it had been given just now, or else the error."""
        believed_until = self._clock() + self._address.fresh_for_s
        last = self._last(key) or _Answer(None, error, believed_until)
        return last._replace(believed_until=believed_until, fallback=True)

    def _last(self, key: K) -> _Answer[V] | None:
        return self._known.get(key) or self._refused.get(key)

    @staticmethod
    def _remember(table: OrderedDict[K, _Answer[V]], key: K, answer: _Answer[V]) -> _Answer[V]:
        table[key] = answer
        table.move_to_end(key)
        while len(table) > MOST_ANSWERS:
            table.popitem(last=False)
        return answer
