"""Prediction over HTTP: one request to ``/serve``, read, answered and sent.

A plain ASGI endpoint: for a small model, request objects and routing would cost more than the prediction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.types import Receive, Scope, Send

from registry_serve.dataplane import DataPlane
from registry_serve.errors import VersionReferenceConflict
from registry_serve.protocols.reading import Read, read_body, until_left
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
        await answer_whole(self._plane, scope, receive, partial(self._answer, scope, send))

    async def _answer(self, scope: Scope, send: Send, read: Read) -> None:
        answer = await self._plane.predict(requested_version(scope), read)
        await send_json(send, answer.body, answer.version)


async def answer_whole(
    plane: DataPlane, scope: Scope, receive: Receive, answer: Callable[[Read], Awaitable[None]]
) -> None:
    """Answer a request in one piece; where text is generated, only for as long as its client is there.

    Args:
        plane: answers it.
        scope: of the request.
        receive: of the request.
        answer: answers it, given what reads the body.
    """
    if plane.generates:
        await until_left(scope, receive, plane.limits, answer)
    else:
        # Other models cannot be stopped, and watching would cost more than a small one's answer.
        await answer(partial(read_body, scope, receive, plane.limits))


async def send_json(send: Send, body: bytes, version: str) -> None:
    """Send the answer of a version."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"serve-model-version", version.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def requested_version(scope: Scope) -> str | None:
    """Return the reference that a request names, in its path or in either spelling of the header.

    Raises:
        VersionReferenceConflict: it names two different ones.
    """
    in_path = scope.get("path_params", {}).get("version")
    return agreed(scope, in_path, "path")


def agreed(scope: Scope, reference: str | None, place: str) -> str | None:
    """Return the reference that a request names in a place, or in either spelling of the header.

    Raises:
        VersionReferenceConflict: it names two different ones.
    """
    named = [value.decode("latin-1") for name, value in scope["headers"] if name in _RAW_VERSION_HEADERS]
    if reference is not None:
        named.append(reference)
    named = [value.strip() for value in named if value.strip()]
    if len(named) > 1 and len({parse_reference(value) or value for value in named}) > 1:
        raise VersionReferenceConflict(f"The request's headers and {place} name different versions. Name it once.")
    return named[0] if named else None
