"""The HTTP server of a deployment that has ``enable_restful_api``.

    POST /mii/NAME   {"prompts": "DeepSpeed is", "max_new_tokens": 128}   ->  [{"generated_text": ..., ...}]
    GET  /healthz                                                         ->  ok

It knows no token: whoever reaches it may ask.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from pydantic_core import to_json
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from registry_serve.errors import ModelNotFound
from registry_serve.launch import address_of
from registry_serve.persistent import wire
from registry_serve.policies import Limits
from registry_serve.protocols.gate import Gate
from registry_serve.protocols.reading import Read, until_left
from registry_serve.signature import decode, fault

_PREFIX = "/mii/"
_LIMITS = Limits()


class Listening(uvicorn.Server):
    """A server at work in the event loop of the front."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        self._serving: asyncio.Future[None] | None = None

    def start(self, bound: socket.socket) -> None:
        """Answer requests that come to a socket."""
        self._serving = asyncio.ensure_future(self.serve([bound]))

    async def close(self) -> None:
        """Stop at once."""
        self.should_exit = self.force_exit = True
        if self._serving is not None:
            await self._serving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray."""
        yield


def listen(answers: wire.Answers, name: str, host: str, port: int) -> Listening:
    """Answer requests from now on.

    Raises:
        ConfigurationError: there is no such host.
        OSError: the port is taken.
    """
    server = Listening(application(answers, name))
    server.start(_bound(host, port))
    return server


def application(answers: wire.Answers, name: str) -> ASGIApp:
    """Return the web application of the deployment with a name."""
    return Gate(_Front(answers, name), None)


class _Front:
    def __init__(self, answers: wire.Answers, name: str) -> None:
        self._answers = answers
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/healthz" and method in ("GET", "HEAD"):
            await PlainTextResponse("ok")(scope, receive, send)
            return
        if not path.startswith(_PREFIX) or path.removeprefix(_PREFIX).rstrip("/") != self._name:
            raise ModelNotFound(path.removeprefix(_PREFIX))
        if method != "POST":
            await Response(status_code=405, headers={"allow": "POST"})(scope, receive, send)
            return
        await until_left(scope, receive, _LIMITS, partial(self._generate, scope, receive, send))

    async def _generate(self, scope: Scope, receive: Receive, send: Send, read: Read) -> None:
        body = decode(await read())
        if not isinstance(body, dict):
            raise fault((), 'must be an object {"prompts": ...}')
        prompts = body.pop("prompts", None)
        answered = await self._answers.generate({"prompts": prompts, "options": body})
        await Response(to_json(answered["responses"]), media_type="application/json")(scope, receive, send)


def _bound(host: str, port: int) -> socket.socket:
    family, address = address_of(host, port)
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound
