"""Waiting: for several things at a time, and for one thing not too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do several things at a time, and return what they return. When one fails the others are ended first.

    Raises:
        Exception: what the first that fails raises.
    """
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """Wait for something, but not too long; it is ended when the time is over, or when whoever waits is cancelled.

    ``asyncio.wait_for`` loses a cancellation that comes in the moment in which the work is done, before Python 3.12.

    Raises:
        TimeoutError: the time is over.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    raise TimeoutError
