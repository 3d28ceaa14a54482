"""Turns: which replica answers which request. The first goes to the first replica, the second to the second, and on."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

from registry_serve.errors import DeploymentUnavailable, RegistryServeError
from registry_serve.generation import Chunk
from registry_serve.generation.together import all_of
from registry_serve.persistent.response import Response, whole

logger = logging.getLogger(__name__)

#: How often each replica is asked whether it is there, and after how long without an answer it is taken for silent.
_ASK_EVERY_S = 0.5
_SILENT_AFTER_S = 3.0
#: A question that got lost is asked anew.
_ASK_ANEW_AFTER_S = 30.0
#: How long a request waits for any replica to come back.
_PATIENCE_S = 10.0
#: What replicas say of themselves that is passed on.
_TOLD = ("id", "node", "process", "pending_requests")
#: How many replicas a request may lose. It may be what ends them.
_TRIES = 2


class ReplicaGone(Exception):
    """A replica has ended, or cannot be reached."""


class Replica(Protocol):
    """A replica as it is reached from another process."""

    def generate(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[list[Chunk], None]:
        """Answer a prompt piece by piece; closing the generator frees what it holds.

        Raises:
            ReplicaGone: it is not there.
            RegistryServeError: it refuses, or fails.
        """

    async def status(self) -> Mapping[str, Any]:
        """Return what it does.

        Raises:
            ReplicaGone: it is not there.
        """


class _Seat:
    """A replica in its place; it may be another process after a while.

    Attributes:
        number: of the place, from 0.
        there: whether the replica answers.
        requests: that it was given.
    """

    def __init__(self, number: int, replica: Replica) -> None:
        self.number = number
        self.requests = 0
        self._replica = replica
        self._there = asyncio.Event()
        self._gone = asyncio.Event()
        self._told: Mapping[str, Any] = {}
        self._gone.set()

    @property
    def there(self) -> bool:
        return self._there.is_set()

    def describe(self) -> dict[str, Any]:
        """Return what is known of it, ready for JSON."""
        told = {name: self._told.get(name) for name in _TOLD}
        return {"number": self.number, "up": self.there, "requests": self.requests, **told}

    def lost(self, reason: object) -> None:
        """Take note that it has gone, with what it was answering."""
        self.silent(reason)
        self._gone.set()

    def silent(self, reason: object) -> None:
        """Take note that it does not say whether it is there; it may still answer what it was given."""
        if self.there:
            logger.warning("Replica %d does not answer: %s", self.number, reason)
        self._there.clear()

    async def keep_asking(self, found: asyncio.Event) -> None:
        """Ask it for ever whether it is there; set ``found`` when it is."""
        while True:
            try:
                self._told = await self._asked()
            except ReplicaGone as error:
                self.lost(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, it does not say that it is there
                self.silent(repr(error))
            else:
                self._gone.clear()
                self._there.set()
                found.set()
            await asyncio.sleep(_ASK_EVERY_S)

    async def _asked(self) -> Mapping[str, Any]:
        """Ask it whether it is there.

        Raises:
            ReplicaGone: it is not, or says nothing for very long.
        """
        asking = asyncio.ensure_future(self._replica.status())
        try:
            for patience in (_SILENT_AFTER_S, _ASK_ANEW_AFTER_S):
                if (await asyncio.wait({asking}, timeout=patience))[0]:
                    break
                self.silent("it is silent")
            else:
                raise ReplicaGone("it was silent for too long")
            if asking.cancelled():  # by Serve, and nobody has ended this
                raise RuntimeError("the question was cancelled")
            return asking.result()
        finally:
            asking.cancel()

    async def chunks(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Answer a prompt.

        Raises:
            ReplicaGone: it is not there, or not any more.
            RegistryServeError: it refuses, or fails.
        """
        try:
            async with aclosing(self._replica.generate(prompt, parameters)) as pieces:
                several = await self._first(pieces)
                while True:
                    for chunk in several:
                        yield chunk
                    try:
                        several = await anext(pieces)
                    except StopAsyncIteration:
                        return
        except ReplicaGone as error:
            self.lost(error)
            raise
        except RegistryServeError as error:
            if error.status != 503:
                raise
            raise ReplicaGone(error.detail) from error  # its engine has ended, or it is shutting down

    async def _first(self, pieces: AsyncGenerator[list[Chunk], None]) -> list[Chunk]:
        """Wait for the first piece for as long as the replica is there: a request to one that is not waits for ever."""
        coming, gone = asyncio.ensure_future(_next(pieces)), asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
        finally:
            gone.cancel()
            if not coming.done():
                coming.cancel()
                with suppress(asyncio.CancelledError, ReplicaGone):
                    await coming
        raise ReplicaGone("it went before it answered")


class Turns:
    """The replicas of a deployment. Its methods belong to one event loop.

    Args:
        name: of the deployment.
        replicas: of it.
    """

    def __init__(self, name: str, replicas: Sequence[Replica]) -> None:
        self._name = name
        self._seats = [_Seat(number, replica) for number, replica in enumerate(replicas)]
        self._turn = itertools.count()
        self._found = asyncio.Event()
        self._asking = [asyncio.ensure_future(seat.keep_asking(self._found)) for seat in self._seats]

    async def answer(self, prompts: Sequence[str], parameters: Mapping[str, Any]) -> tuple[list[Response], int]:
        """Answer the prompts of one request at a time, all by one replica; say which.

        Raises:
            DeploymentUnavailable: no replica is there, or those that were have gone.
            RegistryServeError: a replica refuses, or fails.
        """
        async for seat in self._in_turn():
            with suppress(ReplicaGone):
                return await all_of([whole(seat.chunks(each, parameters)) for each in prompts]), seat.number
        raise AssertionError("unreachable: a turn ends with an error")

    async def stream(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[tuple[Chunk, int], None]:
        """Answer a prompt piece by piece; say which replica does.

        Raises:
            Exception: as ``answer``.
        """
        async for seat in self._in_turn():
            begun = False
            try:
                async with aclosing(seat.chunks(prompt, parameters)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk, seat.number
                return
            except ReplicaGone:
                if begun:
                    raise DeploymentUnavailable(self._name, "has lost the replica that was answering") from None

    def describe(self) -> dict[str, Any]:
        """Return what the replicas do, ready for JSON."""
        replicas = [seat.describe() for seat in self._seats]
        return {"name": self._name, "requests": sum(seat.requests for seat in self._seats), "replicas": replicas}

    def close(self) -> None:
        """Ask the replicas no more."""
        for asking in self._asking:
            asking.cancel()

    async def _in_turn(self) -> AsyncGenerator[_Seat, None]:
        """Give the replica whose turn it is, and when that is lost, the next."""
        first = next(self._turn)
        order = [self._seats[(first + step) % len(self._seats)] for step in range(len(self._seats))]
        for tried in range(_TRIES):
            seat = await self._next(order)
            seat.requests += 1
            yield seat
            order = order[order.index(seat) + 1 :] + order[: order.index(seat) + 1]
            logger.warning("A request has lost its replica %d, for the %d. time.", seat.number, tried + 1)
        raise DeploymentUnavailable(self._name, "has lost the replicas that this request was given to")

    async def _next(self, order: Sequence[_Seat]) -> _Seat:
        patient_until = time.monotonic() + _PATIENCE_S
        while True:
            self._found.clear()
            for seat in order:
                if seat.there:
                    return seat
            with suppress(asyncio.TimeoutError):
                left = patient_until - time.monotonic()
                await asyncio.wait_for(self._found.wait(), max(0.0, left))
            if time.monotonic() >= patient_until:
                raise DeploymentUnavailable(self._name, "has no replica that answers")


async def _next(pieces: AsyncGenerator[list[Chunk], None]) -> list[Chunk]:
    async for several in pieces:
        return several
    return []
