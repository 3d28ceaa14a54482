"""Prediction over HTTP: one request to ``/serve``, read, answered and sent.

A plain ASGI endpoint: for a small model, request objects and routing would cost more than the prediction.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from registry_serve.dataplane import DataPlane
from registry_serve.errors import BodyTimeout, BodyTooLarge, VersionReferenceConflict
from registry_serve.policies import Limits
from registry_serve.registry import parse_reference

#: Both spellings of Ray's header: many proxies drop names with underscores.
VERSION_HEADERS = ("serve_multiplexed_model_id", "serve-multiplexed-model-id")

_RAW_VERSION_HEADERS = tuple(name.encode() for name in VERSION_HEADERS)


class Prediction:
    """Answers ``POST`` requests whose body is rows."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the path's version, if any, is in ``scope["path_params"]``."""
        reference = requested_version(scope)
        answer = await self._plane.predict(reference, partial(read_body, scope, receive, self._plane.limits))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer.body)),
            (b"serve-model-version", answer.version.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def requested_version(scope: Scope) -> str | None:
    """Return the reference that a request names, in its path or in either spelling of the header.

    Raises:
        VersionReferenceConflict: it names two different ones.
    """
    named = [value.decode("latin-1") for name, value in scope["headers"] if name in _RAW_VERSION_HEADERS]
    in_path = scope.get("path_params", {}).get("version")
    if in_path is not None:
        named.append(in_path)
    named = [value.strip() for value in named if value.strip()]
    if len(named) > 1 and len({parse_reference(value) or value for value in named}) > 1:
        raise VersionReferenceConflict("The request's headers and path name different versions. Name it once.")
    return named[0] if named else None


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
