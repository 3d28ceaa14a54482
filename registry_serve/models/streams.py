"""Stream: an answer that is sent piece by piece, from the model's thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

Emit = Callable[[bytes], None]


class Stopped(Exception):
    """Nobody listens any more."""


class Stream:
    """The pieces of one answer on their way. Made on the event loop that reads them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._stopped = threading.Event()

    def emit(self, piece: bytes) -> None:
        """Send a piece. Called from the model's thread.

        Raises:
            Stopped: nobody listens any more.
        """
        if self._stopped.is_set():
            raise Stopped
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def end(self) -> None:
        """Say that there will be no more pieces."""
        self._pieces.put_nowait(None)

    def stop(self) -> None:
        """Let the next ``emit`` raise."""
        self._stopped.set()

    async def pieces(self, timeout_s: float | None) -> AsyncIterator[bytes]:
        """Give the pieces as they come.

        Raises:
            TimeoutError: one took longer than ``timeout_s``.
        """
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.get(), timeout_s)
            except asyncio.TimeoutError:  # before Python 3.11 another class than the built-in one
                raise TimeoutError from None
            if piece is None:
                return
            yield piece
