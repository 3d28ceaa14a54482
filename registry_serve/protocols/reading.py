"""Reading: the body of a request, and whether its client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from registry_serve.errors import BodyTimeout, BodyTooLarge
from registry_serve.policies import Limits

Read = Callable[[], Awaitable[bytes]]


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """Read the body, giving up as soon as it is too large, or takes longer than a request may.

    Raises:
        BodyTooLarge: by its ``Content-Length``, or by what has come so far.
        BodyTimeout: the client is too slow.
        ClientDisconnect: the client has left.
    """
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if announced.isdigit() and int(announced) > limits.max_body_bytes:
        raise BodyTooLarge(limits.max_body_bytes)
    # A timer of our own: the ready-made ones cost ten times as much, and nearly every body is there already.
    reading, late = asyncio.current_task(), False

    def give_up() -> None:
        nonlocal late
        late = reading is not None and reading.cancel()

    timer = asyncio.get_running_loop().call_later(limits.request_timeout_s, give_up)
    try:
        return await _all_of(receive, limits.max_body_bytes)
    except asyncio.CancelledError:
        if late:
            raise BodyTimeout(limits.request_timeout_s) from None
        raise
    finally:
        timer.cancel()


async def until_left(scope: Scope, receive: Receive, limits: Limits, answer: Callable[[Read], Awaitable[None]]) -> None:
    """Answer a request for as long as its client is there; when it leaves, the answer is cancelled.

    Args:
        scope: of the request.
        receive: of the request.
        limits: of its body.
        answer: answers it, given what reads the body.

    Raises:
        ClientDisconnect: the client has left.
        Exception: what ``answer`` raises.
    """
    body_is_read = asyncio.Event()

    async def read() -> bytes:
        body = await read_body(scope, receive, limits)
        body_is_read.set()
        return body

    answering = asyncio.ensure_future(answer(read))
    leaving = asyncio.ensure_future(_left(receive, body_is_read))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            await answering
            return
    finally:
        leaving.cancel()
        answering.cancel()  # nothing happens to it where it is done
    # What it holds is free when it has ended; how it ends is told to nobody.
    await asyncio.wait((answering,))
    raise ClientDisconnect


async def _left(receive: Receive, body_is_read: asyncio.Event) -> None:
    await body_is_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _all_of(receive: Receive, limit_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
