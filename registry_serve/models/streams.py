"""Stream: an answer that is sent piece by piece, from the model's thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from registry_serve.generation.together import within

T = TypeVar("T")

Emit = Callable[[bytes], None]

#: Pieces that may wait for a slow client; then the model waits.
_MOST_WAITING = 256
#: Sources that one caller may have at work side by side.
_SIDE_BY_SIDE = 32


class Stopped(Exception):
    """Nobody listens any more."""


class Stream:
    """The pieces of one answer on their way. Made on the event loop that reads them.

    Args:
        on_piece: called on the event loop whenever the model has made a piece.
        timeout_s: how long the reader waits for a piece, and the model for a reader that has too many; None for ever.
    """

    def __init__(self, on_piece: Callable[[], None], timeout_s: float | None) -> None:
        self._on_piece = on_piece
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(_MOST_WAITING)
        self._stopped = threading.Event()

    def emit(self, piece: bytes) -> None:
        """Send a piece. Called from the model's thread.

        Raises:
            Stopped: nobody listens any more, or too slowly.
        """
        if not self._room.acquire(timeout=self._timeout_s) or self._stopped.is_set():
            raise Stopped
        self._loop.call_soon_threadsafe(self._arrive, piece)

    def end(self) -> None:
        """Say that there will be no more pieces."""
        self._pieces.put_nowait(None)

    def stop(self) -> None:
        """Let the next ``emit``, or the one that waits, raise."""
        self._stopped.set()
        self._room.release()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the pieces as they come.

        Raises:
            TimeoutError: one takes too long.
        """
        while True:
            piece = await within(self._timeout_s, self._pieces.get())
            if piece is None:
                return
            self._room.release()
            yield piece

    def _arrive(self, piece: bytes) -> None:
        self._on_piece()
        self._pieces.put_nowait(piece)


async def gathered(source: AsyncIterator[T]) -> AsyncGenerator[list[T], None]:
    """Give what comes from a source; what comes while nobody asks is given together."""
    arrived: asyncio.Queue[T | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for each in source:
                arrived.put_nowait(each)
        finally:
            arrived.put_nowait(None)

    reading = asyncio.ensure_future(read())
    try:
        while (each := await arrived.get()) is not None:
            together = [each]
            while not arrived.empty() and (each := arrived.get_nowait()) is not None:
                together.append(each)
            yield together
            if each is None:
                break
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def side_by_side(
    sources: Sequence[Callable[[], AsyncGenerator[T, None]]],
) -> AsyncGenerator[tuple[int, T], None]:
    """Give what comes from several sources, some of them at a time, each with the place of its source.

    Raises:
        Exception: what a source raises; the others are ended.
    """
    arrived: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
    waiting = iter(enumerate(sources))

    async def read() -> None:
        ended = None
        try:
            for place, source in waiting:
                async with aclosing(source()) as pieces:
                    async for piece in pieces:
                        arrived.put_nowait((place, piece))
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            ended = error
        arrived.put_nowait(ended)

    reading = [asyncio.ensure_future(read()) for _ in range(min(len(sources), _SIDE_BY_SIDE))]
    left = len(reading)
    try:
        while left:
            each = await arrived.get()
            if isinstance(each, Exception):
                raise each
            if each is None:
                left -= 1
            else:
                yield each
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
