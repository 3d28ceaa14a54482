"""Who may come in: API keys, the origin of browser requests, and an id for every request."""

from __future__ import annotations

import hmac
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry_serve.errors import ConfigurationError, ForeignOrigin, Unauthenticated
from registry_serve.protocols.problems import path_of, problem

_LOOKED_AT = frozenset({b"authorization", b"host", b"origin", b"x-forwarded-host", b"x-request-id"})
#: Health checks, which bring no key.
_OPEN = ("/health/", "/ping")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def keys_in(path: str | Path) -> list[str]:
    """Return the keys in a file: one per line; blank lines and lines that begin with ``#`` do not count.

    Raises:
        ConfigurationError: the file cannot be read, or holds no key.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The API key file {str(path)!r} cannot be read on this node.") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigurationError(f"The API key file {str(path)!r} holds no key.")
    return keys


class ApiKeys:
    """The keys that open an endpoint.

    Only the path of their file travels in a deployment's arguments, which Ray shows to whoever may look.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @classmethod
    def read(cls, path: str | Path) -> ApiKeys:
        """Read a file of keys.

        Raises:
            ConfigurationError: the file cannot be read, or holds no key.
        """
        return cls(keys_in(path))

    def open(self, authorization: str) -> bool:
        """Say whether an ``Authorization`` header holds one of the keys, with or without ``Bearer``."""
        scheme, _, rest = authorization.partition(" ")
        # Starlette decodes headers as latin-1; the file is UTF-8, and so is what clients send.
        given = (rest if scheme.lower() == "bearer" else authorization).strip().encode("latin-1", "replace")
        # Every key is compared in full, so that the time taken tells nothing about any of them.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return any(matches)


class Gate:
    """ASGI middleware around a front.

    Every HTTP request gets an id: its own ``x-request-id`` if that is a plain word, else a new one; the answer carries
    it. Requests without a valid key are refused on every path but the health checks, if there are keys. Requests that
    a browser sends from another site's page are refused: a page can send any body without asking first. An error that
    nobody foresaw ends here and is answered like any other.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys | None, *, label: bool = True) -> None:
        self.app = app
        self.keys = keys
        self.label = label

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        request_id = headers.get(b"x-request-id", "")
        if not request_id or (self.label and not _REQUEST_ID.fullmatch(request_id)):
            request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        if self.label:
            send = _labelled(send, request_id)
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, receive, send_noting)
        except ClientDisconnect:
            if not started:
                await Response(status_code=499)(scope, receive, send)  # nobody is there to read it
        except Exception as error:
            if started:
                raise
            await problem(error, request_id, path_of(scope))(scope, receive, send)

    def _check(self, scope: Scope, headers: Mapping[bytes, str]) -> None:
        if path_of(scope).startswith(_OPEN):
            return
        if self.keys is not None and not self.keys.open(headers.get(b"authorization", "")):
            raise Unauthenticated
        origin = headers.get(b"origin")
        # A page of another site cannot set x-forwarded-host without asking first; a proxy in front of us does.
        own = (headers.get(b"host"), headers.get(b"x-forwarded-host"))
        if origin is not None and scope["method"] != "GET" and _site(origin) not in own:
            raise ForeignOrigin


def _site(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        raise ForeignOrigin from None


def _headers(scope: Scope) -> dict[bytes, str]:
    """Return the headers that the gate looks at; of several with one name, the first."""
    raw = reversed(scope["headers"])
    return {name: value.decode("latin-1") for name, value in raw if name in _LOOKED_AT}


def _labelled(send: Send, request_id: str) -> Send:
    async def send_labelled(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
        await send(message)

    return send_labelled
