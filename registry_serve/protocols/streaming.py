"""Streaming: an answer piece by piece over HTTP, as lines or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from registry_serve.dataplane import DataPlane, Parse
from registry_serve.errors import RegistryServeError
from registry_serve.protocols.prediction import requested_version
from registry_serve.protocols.problems import log_server_error, problem_body
from registry_serve.protocols.reading import Read, until_left


@dataclass(frozen=True)
class Form:
    """How the pieces of an answer are written.

    Attributes:
        media_type: of the answer.
        piece: writes a piece, which is JSON.
        failure: writes what went wrong after the first piece, when the status has been sent; given the request's id.
        end: what stands after the last piece of an answer that is complete.
    """

    media_type: bytes
    piece: Callable[[bytes], bytes]
    failure: Callable[[RegistryServeError, str], bytes]
    end: bytes = b""


def event(data: bytes, name: bytes = b"") -> bytes:
    """Write a server-sent event; JSON that is encoded has no line breaks."""
    return b"%bdata: %b\n\n" % (b"event: %b\n" % name if name else b"", data)


#: MosaicML's: one JSON value per line. Clients guess how letters are written where a type does not say so.
LINES = Form(
    b"application/x-ndjson; charset=utf-8",
    piece=lambda piece: piece + b"\n",
    failure=lambda error, _: to_json({"error": error.detail, "code": error.code}) + b"\n",
)
#: One JSON value per event. An answer that ends without the last event is not complete.
EVENTS = Form(
    b"text/event-stream; charset=utf-8",
    piece=event,
    failure=lambda error, request_id: event(problem_body(error, request_id), b"error"),
    end=event(b"{}", b"done"),
)


class Pieces:
    """Answers ``POST`` requests with one row, until the client has left.

    Args:
        plane: answers them.
        form: that the pieces are written in.
        parse: reads the body, where it is not in the form of the version's own schema.
    """

    def __init__(self, plane: DataPlane, form: Form, parse: Parse | None = None) -> None:
        self._plane = plane
        self._form = form
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the path's version, if any, is in ``scope["path_params"]``."""
        await until_left(scope, receive, self._plane.limits, partial(self._answer, scope, send))

    async def _answer(self, scope: Scope, send: Send, read: Read) -> None:
        async with aclosing(self._plane.generate(requested_version(scope), read, self._parse)) as pieces:
            # Tokens that are no text yet come as empty pieces.
            written = (
                (each.version, self._form.piece(each.body))
                async for each in pieces
                if not each.chunk or each.chunk.text
            )
            await send_stream(scope, send, self._form, written)


async def send_stream(scope: Scope, send: Send, form: Form, pieces: AsyncIterator[tuple[str, bytes]]) -> None:
    """Send pieces as they come. Nothing is sent before the first: an error until then has a status of its own.

    Args:
        scope: of the request.
        send: of the request.
        form: of the pieces.
        pieces: the version that answers, and what to send.

    Raises:
        RegistryServeError: there is no first piece.
    """
    started = False
    try:
        async for version, piece in pieces:
            if not started:
                await _start(send, form, version)
                started = True
            await _send(send, piece)
    except RegistryServeError as error:
        if not started:
            raise
        request_id = scope["state"]["request_id"]
        log_server_error(error, request_id)
        await _send(send, form.failure(error, request_id))
    else:
        if not started:
            await _start(send, form, None)
        await _send(send, form.end)
    await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, form: Form, version: str | None) -> None:
    headers = [(b"content-type", form.media_type), (b"cache-control", b"no-cache")]
    if version is not None:
        headers.append((b"serve-model-version", version.encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})
