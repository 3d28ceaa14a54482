"""Front: a deployment's web application, put together of the fronts that it offers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from registry_serve.dataplane import DataPlane
from registry_serve.errors import RegistryServeError
from registry_serve.protocols.gate import ApiKeys, Gate
from registry_serve.protocols.problems import path_of, problem

Endpoint = Callable[[Request], Awaitable[Response]]
#: Finds what answers a ``POST`` to a path, and the path's parameters.
Find = Callable[[str], tuple[ASGIApp, Mapping[str, Any]] | None]


class Front:
    """The gate, behind it predictions straight to their endpoint, and FastAPI for all other pages.

    Routing and the layers that only other pages need would cost more than a small model.

    Attributes:
        router: FastAPI's, where Ray looks for the route of a request.
        routes: its routes.

    Args:
        plane: answers the requests.
        find: finds the endpoint of a prediction.
        paths: all paths that it finds one for.
        described: the OpenAPI document.
        pages: what answers a ``GET``, by path, besides what every front has.
        keys: keys that clients must send one of, if any.
        behind_serve: Ray Serve puts the request id on every answer itself.
    """

    def __init__(
        self,
        plane: DataPlane,
        find: Find,
        paths: Mapping[str, ASGIApp],
        described: Mapping[str, Any],
        *,
        pages: Mapping[str, Endpoint],
        keys: ApiKeys | None = None,
        behind_serve: bool = False,
    ) -> None:
        self._find = find
        self._pages = _pages({**_about(plane), **pages}, described)
        # First, since Ray looks for the route of every request, in order, to label its metrics with it.
        self._pages.router.routes[:0] = [
            Route(path + slash, endpoint, methods=["POST"], include_in_schema=False)
            for path, endpoint in paths.items()
            for slash in ("", "/")
        ]
        self.router = self._pages.router
        self.routes = self._pages.routes
        self._gate = Gate(self._inside, keys, label=not behind_serve)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._gate(scope, receive, send)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            found = self._find(path_of(scope))
            if found is not None:
                endpoint, scope["path_params"] = found
                await endpoint(scope, receive, send)
                return
        await self._pages(scope, receive, send)


def _pages(endpoints: Mapping[str, Endpoint], described: Mapping[str, Any]) -> FastAPI:
    pages: FastAPI = FastAPIOffline(title=described["info"]["title"])
    pages.openapi = lambda: dict(described)  # type: ignore[method-assign]
    for path, endpoint in endpoints.items():
        pages.add_route(path, endpoint, methods=["GET"], include_in_schema=False)
    for kind in (RegistryServeError, HTTPException, Exception):
        pages.add_exception_handler(kind, _tell)
    return pages


def _about(plane: DataPlane) -> dict[str, Endpoint]:
    async def model(request: Request) -> Response:
        return json_answer(await plane.describe())

    async def live(request: Request) -> Response:
        return json_answer({"status": "live"})

    async def ready(request: Request) -> Response:
        return json_answer({"status": "ready" if plane.ready else "not ready"}, 200 if plane.ready else 503)

    return {"/model": model, "/health/live": live, "/health/ready": ready, "/ping": ready}


def json_answer(content: object, status: int = 200) -> Response:
    """Return an answer of plain values."""
    return Response(to_json(content), status, media_type="application/json")


async def _tell(request: Request, error: Exception) -> Response:
    return problem(error, request.state.request_id, path_of(request.scope))
