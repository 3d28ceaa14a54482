"""The front of MosaicML's custom deployments: ``/predict`` and ``/predict_stream``.

    POST /predict         {"inputs": ["prompt 1", "prompt 2"], "parameters": {"top_k": 5}}  ->  {"outputs": [..., ...]}
    POST /predict_stream  the same with one input                                           ->  one JSON value per line

The body is read as JSON whatever its Content-Type says: these clients send it as a form. Handlers read the body in
their own way (see :class:`registry_serve.handlers.HandlerSchema`); for a registered model, inputs are rows, or values
of its only column, and parameters are its params.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from registry_serve.dataplane import Answer, DataPlane
from registry_serve.errors import RegistryServeError
from registry_serve.handlers import HandlerContract, HandlerSchema, inputs_and_parameters
from registry_serve.protocols.front import Front
from registry_serve.protocols.gate import ApiKeys
from registry_serve.protocols.handler_openapi import document
from registry_serve.protocols.prediction import read_body, requested_version
from registry_serve.protocols.problems import log_server_error
from registry_serve.signature import Request, Schema, decode, fault


def handler_app(
    plane: DataPlane,
    title: str,
    keys: ApiKeys | None = None,
    *,
    behind_serve: bool = False,
) -> Front:
    """Build the web application of a handler: the paths of :func:`native_app` but those of the signature.

    Args:
        plane: answers the requests.
        title: shown in the documentation.
        keys: keys that clients must send one of, if any.
        behind_serve: Ray Serve puts the request id on every answer itself.
    """
    assert isinstance(plane.contract, HandlerContract)
    paths = endpoints(plane)
    described = document(plane.contract, title, with_keys=keys is not None)
    return Front(plane, partial(find, paths), paths, described, keys=keys, behind_serve=behind_serve)


def endpoints(plane: DataPlane) -> dict[str, ASGIApp]:
    """Return the endpoints of this front by path."""
    return {"/predict": Predict(plane), "/predict_stream": PredictStream(plane)}


def find(paths: Mapping[str, ASGIApp], path: str) -> tuple[ASGIApp, Mapping[str, Any]] | None:
    """Find the endpoint of a path, which may end in a slash."""
    endpoint = paths.get(path.rstrip("/"))
    return None if endpoint is None else (endpoint, {})


class Predict:
    """Answers ``POST /predict``."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        read = partial(read_body, scope, receive, self._plane.limits)
        answer = await self._plane.predict(requested_version(scope), read, _request)
        body = b'{"outputs":%b}' % answer.body
        await _start(send, answer, b"application/json", length=len(body))
        await send({"type": "http.response.body", "body": body})


class PredictStream:
    """Answers ``POST /predict_stream``."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, until the client has left."""
        body_is_read = asyncio.Event()

        async def read() -> bytes:
            body = await read_body(scope, receive, self._plane.limits)
            body_is_read.set()
            return body

        answering = asyncio.ensure_future(self._answer(scope, read, send))
        leaving = asyncio.ensure_future(_left(receive, body_is_read))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()  # nothing happens to it where it is done
        with suppress(asyncio.CancelledError):
            await answering

    async def _answer(self, scope: Scope, read: Callable[[], Awaitable[bytes]], send: Send) -> None:
        pieces = self._plane.generate(requested_version(scope), read, _request)
        async with aclosing(pieces):
            started = False
            try:
                async for piece in pieces:
                    if piece.chunk is not None and not piece.chunk.text:
                        continue
                    if not started:
                        await _start(send, piece, b"application/x-ndjson")
                        started = True
                    await _line(send, piece.body)
            except RegistryServeError as error:
                if not started:
                    raise
                # The status has been sent: the last line says that this is no end.
                log_server_error(error, scope["state"]["request_id"])
                await _line(send, to_json({"error": error.detail, "code": error.code}))
            if not started:
                await _start(send, None, b"application/x-ndjson")
        await send({"type": "http.response.body", "body": b""})


def _request(schema: Schema, body: bytes) -> Request:
    """Read a body for a handler, or for a registered model."""
    if isinstance(schema, HandlerSchema):
        return schema.parse(body)
    value = decode(body)
    if not isinstance(value, dict):
        raise fault((), 'must be an object {"inputs": [...]}')
    return schema.check_inputs(*inputs_and_parameters(value))


async def _start(send: Send, answer: Answer | None, media_type: bytes, length: int | None = None) -> None:
    headers = [(b"content-type", media_type)]
    if answer is not None:
        headers.append((b"serve-model-version", answer.version.encode()))
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _line(send: Send, value: bytes) -> None:
    await send({"type": "http.response.body", "body": value + b"\n", "more_body": True})


async def _left(receive: Receive, body_is_read: asyncio.Event) -> None:
    await body_is_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
