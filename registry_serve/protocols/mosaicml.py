"""The front of MosaicML's custom deployments: ``/predict`` and ``/predict_stream``.

    POST /predict         {"inputs": ["prompt 1", "prompt 2"], "parameters": {"top_k": 5}}  ->  {"outputs": [..., ...]}
    POST /predict_stream  the same with one input                                           ->  one JSON value per line

The body is read as JSON whatever its Content-Type says: these clients send it as a form. Handlers read the body in
their own way (see :class:`registry_serve.handlers.HandlerSchema`); for a registered model, inputs are rows, or values
of its only column, and parameters are its params.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from registry_serve.dataplane import DataPlane
from registry_serve.handlers import HandlerContract, HandlerSchema, inputs_and_parameters
from registry_serve.protocols import openai
from registry_serve.protocols.front import Front
from registry_serve.protocols.gate import ApiKeys
from registry_serve.protocols.handler_openapi import document
from registry_serve.protocols.prediction import answer_whole, requested_version, send_json
from registry_serve.protocols.reading import Read
from registry_serve.protocols.streaming import LINES, Pieces
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
    paths = {**endpoints(plane), **openai.endpoints(plane)}
    described = document(plane.contract, title, with_keys=keys is not None)
    pages = openai.pages(plane)
    return Front(plane, partial(find, paths), paths, described, pages=pages, keys=keys, behind_serve=behind_serve)


def endpoints(plane: DataPlane) -> dict[str, ASGIApp]:
    """Return the endpoints of this front by path."""
    return {"/predict": Predict(plane), "/predict_stream": Pieces(plane, LINES, _request)}


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
        await answer_whole(self._plane, scope, receive, partial(self._answer, scope, send))

    async def _answer(self, scope: Scope, send: Send, read: Read) -> None:
        answer = await self._plane.predict(requested_version(scope), read, _request)
        await send_json(send, b'{"outputs":%b}' % answer.body, answer.version)


def _request(schema: Schema, body: bytes) -> Request:
    """Read a body for a handler, or for a registered model."""
    if isinstance(schema, HandlerSchema):
        return schema.parse(body)
    value = decode(body)
    if not isinstance(value, dict):
        raise fault((), 'must be an object {"inputs": [...]}')
    return schema.check_inputs(*inputs_and_parameters(value))
