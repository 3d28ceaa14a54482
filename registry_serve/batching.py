"""Batcher: the requests that wait for one model.

Many models answer many rows at once almost as fast as one. So the model, whenever it is free, takes what has gathered
meanwhile: under low load every request goes alone and at once, under high load batches grow by themselves. There is
no timer, unless the policy asks for one.

    submit ──► waiting ──► taken: the oldest, and those behind it of the same group ──► computed ──► answered
                 └── the caller leaves, or its time is over: out of the queue, never computed

Plain asyncio, for one event loop; it knows neither models nor rows: what computes a batch is given to it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

from registry_serve.errors import VersionOverloaded
from registry_serve.policies import BatchPolicy

ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


class Waiting(Generic[ItemT, OutcomeT]):
    """One request in the queue.

    Attributes:
        item: what is to be computed.
        rows: how many rows it counts for.
        size_bytes: how large it is.
        group: only requests of equal groups share a batch; None goes alone.
    """

    __slots__ = ("answer", "group", "item", "rows", "since", "size_bytes", "taken")

    def __init__(
        self, item: ItemT, rows: int, size_bytes: int, group: Hashable | None, answer: asyncio.Future[OutcomeT]
    ) -> None:
        self.item = item
        self.rows = rows
        self.size_bytes = size_bytes
        self.group = group
        self.answer = answer
        self.since = time.monotonic()
        self.taken = False

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer. May be asked from any thread."""
        return not self.answer.done()


class Batcher(Generic[ItemT, OutcomeT]):
    """The queue of one model, which computes one batch at a time.

    Args:
        compute: computes a batch, in the executor; returns an outcome or an exception for each request, in order.
        executor: the model's own thread.
        policy: how large a batch may be, how long it may gather, and how many requests may wait.
        hold: called with the first item of a batch before it is computed; what it returns is called afterwards, also
            when all callers have left meanwhile. Both on the event loop.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Waiting[ItemT, OutcomeT]]], Sequence[OutcomeT | BaseException]],
        executor: Executor,
        policy: BatchPolicy,
        hold: Callable[[ItemT], Callable[[], None]],
    ) -> None:
        self.batches = 0
        self._compute = compute
        self._executor = executor
        self._policy = policy
        self._hold = hold
        self._waiting: deque[Waiting[ItemT, OutcomeT]] = deque()
        self._busy_since: float | None = None
        self._next_pull: asyncio.Handle | None = None

    @property
    def busy_s(self) -> float:
        """For how many seconds the present batch has been computed; 0 while there is none."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    def __len__(self) -> int:
        """Return how many requests wait, those being computed not among them."""
        return len(self._waiting)

    async def submit(
        self,
        item: ItemT,
        *,
        rows: int = 1,
        size_bytes: int = 0,
        group: Hashable | None = None,
        timeout_s: float | None = None,
    ) -> OutcomeT:
        """Wait in the queue, and return the outcome.

        Args:
            item: what is to be computed.
            rows: how many rows it counts for.
            size_bytes: how large it is.
            group: only requests of equal groups share a batch; None goes alone.
            timeout_s: how long to wait at the most.

        Raises:
            VersionOverloaded: too many wait already.
            TimeoutError: the time is over; a batch that has begun goes on without this caller.
            Exception: what ``compute`` returned for this request, or raised.
        """
        if len(self._waiting) >= self._policy.max_waiting:
            raise VersionOverloaded(self._policy.max_waiting)
        loop = asyncio.get_running_loop()
        waiting: Waiting[ItemT, OutcomeT] = Waiting(item, rows, size_bytes, group, loop.create_future())
        timer = None if timeout_s is None else loop.call_later(timeout_s, _expire, waiting.answer)
        self._waiting.append(waiting)
        self._pull_soon()
        try:
            return await waiting.answer
        finally:
            if timer is not None:
                timer.cancel()
            if not waiting.taken:
                self._waiting.remove(waiting)

    def progressed(self) -> None:
        """Note that the present batch goes on: it counts as begun now."""
        if self._busy_since is not None:
            self._busy_since = time.monotonic()

    # --- pulling -----------------------------------------------------------------------------------------------------

    def _pull_soon(self) -> None:
        """Let the model take a batch, unless it is busy or about to."""
        if self._busy_since is not None or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        delay_s = self._gathering_s()
        if delay_s <= 0:
            if self._next_pull is not None:
                self._next_pull.cancel()
            # Not at once: requests that arrived together are read in one turn of the loop, and shall go together.
            self._next_pull = loop.call_soon(self._pull)
        elif self._next_pull is None:
            self._next_pull = loop.call_later(delay_s, self._pull)

    def _gathering_s(self) -> float:
        """Return for how many seconds the batch should gather further requests."""
        policy = self._policy
        if not policy.max_wait_ms or sum(waiting.rows for waiting in self._waiting) >= policy.max_batch_size:
            return 0.0
        return self._waiting[0].since + policy.max_wait_ms / 1000 - time.monotonic()

    def _pull(self) -> None:
        self._next_pull = None
        batch = self._take()
        if not batch:
            return
        self._busy_since = time.monotonic()
        self.batches += 1
        release = self._hold(batch[0].item)
        loop = asyncio.get_running_loop()

        def computed(future: Future[Sequence[OutcomeT | BaseException]]) -> None:
            loop.call_soon_threadsafe(self._finish, batch, future, release)

        self._executor.submit(self._compute, batch).add_done_callback(computed)

    def _take(self) -> list[Waiting[ItemT, OutcomeT]]:
        """Take the oldest request out of the queue, and those that may share its batch."""
        batch: list[Waiting[ItemT, OutcomeT]] = []
        others: list[Waiting[ItemT, OutcomeT]] = []
        room = self._policy.max_batch_size
        room_bytes = self._policy.max_batch_bytes or math.inf
        while self._waiting and (room > 0 or not batch):
            waiting = self._waiting.popleft()
            if not waiting.wanted:
                waiting.taken = True
            elif not batch or (
                waiting.group is not None
                and waiting.group == batch[0].group
                and waiting.rows <= room
                and waiting.size_bytes <= room_bytes
            ):
                waiting.taken = True
                batch.append(waiting)
                room_bytes -= waiting.size_bytes
                room = room - waiting.rows if waiting.group is not None else 0
            else:
                others.append(waiting)
        self._waiting.extendleft(reversed(others))
        return batch

    def _finish(
        self,
        batch: Sequence[Waiting[ItemT, OutcomeT]],
        future: Future[Sequence[OutcomeT | BaseException]],
        release: Callable[[], None],
    ) -> None:
        self._busy_since = None
        # First the next batch: the model computes it while this one's answers are sent.
        self._pull_soon()
        release()
        error = future.exception()
        outcomes = [error] * len(batch) if error is not None else future.result()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if not waiting.wanted:
                continue
            if isinstance(outcome, BaseException):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(outcome)


def _expire(answer: asyncio.Future[OutcomeT]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
