"""The native front: the model's own signature over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from registry_serve.dataplane import DataPlane
from registry_serve.errors import BodyTooLarge, RegistryServeError, VersionReferenceConflict
from registry_serve.protocols.gate import ApiKeys, Gate
from registry_serve.protocols.openapi import VERSION_HEADERS, document
from registry_serve.protocols.problems import problem
from registry_serve.registry import parse_reference

Endpoint = Callable[[Request], Awaitable[Response]]


def native_app(plane: DataPlane, title: str, keys: ApiKeys | None = None, *, behind_serve: bool = False) -> FastAPI:
    """Build the web application of one model.

    | path                                            | what                                          |
    |-------------------------------------------------|-----------------------------------------------|
    | ``POST /serve``                                 | predict; the version comes in a header        |
    | ``POST /versions/{version}/serve``              | predict with that version                     |
    | ``GET /model``                                  | name, versions, compatibility, what is loaded |
    | ``GET /health/live``, ``GET /health/ready``     | for load balancers; need no key               |
    | ``GET /docs``, ``/redoc``, ``/openapi.json``    | the API, without internet access              |

    Args:
        plane: answers the requests.
        title: shown in the documentation.
        keys: keys that clients must send one of, if any.
        behind_serve: Ray Serve puts the request id on every answer itself.
    """
    app: FastAPI = FastAPIOffline(title=title)
    described = document(plane.contract, title, with_keys=keys is not None)
    app.openapi = lambda: described  # type: ignore[method-assign]
    for path, endpoint, method in _routes(plane):
        app.add_route(path, endpoint, methods=[method], include_in_schema=False)
    for kind in (RegistryServeError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _tell)
    app.add_middleware(Gate, keys=keys, label=not behind_serve)
    return app


def _routes(plane: DataPlane) -> list[tuple[str, Endpoint, str]]:
    async def predict(request: Request) -> Response:
        reference = requested_version(request)
        answer = await plane.predict(reference, partial(read_body, request, plane.limits.max_body_bytes))
        return Response(answer.body, headers={"serve-model-version": answer.version}, media_type="application/json")

    async def model(request: Request) -> Response:
        return _json(await plane.describe())

    async def live(request: Request) -> Response:
        return _json({"status": "live"})

    async def ready(request: Request) -> Response:
        return _json({"status": "ready" if plane.ready else "not ready"}, 200 if plane.ready else 503)

    serve = [(path + slash, predict, "POST") for path in ("/serve", "/versions/{version}/serve") for slash in ("", "/")]
    return [
        *serve,
        ("/model", model, "GET"),
        ("/health/live", live, "GET"),
        ("/health/ready", ready, "GET"),
    ]


def requested_version(request: Request) -> str | None:
    """Return the reference that a request names, in its path or in either spelling of the header.

    Raises:
        VersionReferenceConflict: it names two different ones.
    """
    named = [value for name in VERSION_HEADERS for value in request.headers.getlist(name)]
    named.append(request.path_params.get("version", ""))
    named = [value.strip() for value in named if value.strip()]
    if len({parse_reference(value) or value for value in named}) > 1:
        raise VersionReferenceConflict("The request's headers and path name different versions. Name it once.")
    return named[0] if named else None


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Read the body, giving up as soon as it is too large.

    Raises:
        BodyTooLarge: by its ``Content-Length``, or by what has come so far.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _json(content: object, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")


async def _tell(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody is there to read it
    return problem(error, request.state.request_id)
