"""The native front: the model's own signature over HTTP."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

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
from registry_serve.protocols.openapi import document
from registry_serve.protocols.prediction import Prediction
from registry_serve.protocols.problems import problem

Endpoint = Callable[[Request], Awaitable[Response]]

_PREDICTION_PATH = re.compile(r"(?:/versions/(?P<version>[^/]+))?/serve/?")


def native_app(plane: DataPlane, title: str, keys: ApiKeys | None = None, *, behind_serve: bool = False) -> NativeApp:
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
    pages: FastAPI = FastAPIOffline(title=title)
    described = document(plane.contract, title, with_keys=keys is not None)
    pages.openapi = lambda: described  # type: ignore[method-assign]
    predict = Prediction(plane)
    # First, since Ray looks for the route of every request, in order, to label its metrics with it.
    pages.router.routes[:0] = [
        Route(path + slash, predict, methods=["POST"], include_in_schema=False)
        for path in ("/serve", "/versions/{version}/serve")
        for slash in ("", "/")
    ]
    for path, endpoint in _pages(plane).items():
        pages.add_route(path, endpoint, methods=["GET"], include_in_schema=False)
    for kind in (RegistryServeError, HTTPException, Exception):
        pages.add_exception_handler(kind, _tell)
    return NativeApp(predict, pages, keys, label=not behind_serve)


class NativeApp:
    """The gate, behind it predictions straight to their endpoint, and FastAPI for all other pages.

    Routing and the layers that only other pages need would cost more than a small model.

    Attributes:
        router: FastAPI's, where Ray looks for the route of a request.
        routes: its routes.
    """

    def __init__(self, predict: ASGIApp, pages: FastAPI, keys: ApiKeys | None, *, label: bool) -> None:
        self.router = pages.router
        self.routes = pages.routes
        self._predict = predict
        self._pages = pages
        self._gate = Gate(self._inside, keys, label=label)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._gate(scope, receive, send)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            found = _PREDICTION_PATH.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
            if found is not None:
                scope["path_params"] = found.groupdict()
                await self._predict(scope, receive, send)
                return
        await self._pages(scope, receive, send)


def _pages(plane: DataPlane) -> dict[str, Endpoint]:
    async def model(request: Request) -> Response:
        return _json(await plane.describe())

    async def live(request: Request) -> Response:
        return _json({"status": "live"})

    async def ready(request: Request) -> Response:
        return _json({"status": "ready" if plane.ready else "not ready"}, 200 if plane.ready else 503)

    return {"/model": model, "/health/live": live, "/health/ready": ready}


def _json(content: object, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")


async def _tell(request: Request, error: Exception) -> Response:
    return problem(error, request.state.request_id)
