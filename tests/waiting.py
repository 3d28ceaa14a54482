"""Time in tests: waiting for what happens elsewhere, and a clock that stands still."""

import asyncio


async def until(true):
    """Wait until something is true, for ten seconds of waiting at the most."""
    for _ in range(10_000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
