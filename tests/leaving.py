"""Clients that leave, for applications in this process."""

import asyncio
import json


class Client:
    """Sends one ``POST`` to an ASGI application, and leaves when it is told to.

    Attributes:
        pieces: what has come of the body.
        status: of the answer; None as long as there is none.
    """

    def __init__(self, app, path, body):
        self.pieces = []
        self.status = None
        self._come = asyncio.Event()
        self._gone = asyncio.Event()
        self._content = json.dumps(body).encode()
        self._path = path
        self.answering = asyncio.ensure_future(app(self._scope(), self._receive, self._send))

    async def piece(self):
        """Wait for a further piece."""
        self._come.clear()
        await asyncio.wait_for(self._come.wait(), 30)

    async def leave(self):
        """Leave, and wait until the application has noticed."""
        self._gone.set()
        await asyncio.wait_for(self.answering, 5)

    def _scope(self):
        headers = [(b"host", b"serve.test"), (b"content-type", b"application/json")]
        http = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "asgi": {"version": "3.0"}}
        place = {"path": self._path, "raw_path": self._path.encode(), "query_string": b"", "root_path": ""}
        return {**http, **place, "headers": headers, "server": ("serve.test", 80), "client": ("127.0.0.1", 1)}

    async def _receive(self):
        content, self._content = self._content, None
        if content is not None:
            return {"type": "http.request", "body": content, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.status = message.get("status", self.status)
        if message.get("body"):
            self.pieces.append(message["body"])
            self._come.set()
