"""A Hugging Face hub on this machine: as much of it as ``snapshot_download`` asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """What the hub has.

    Attributes:
        address: of the hub.
        requests: what was asked for, as ``GET /path``.
        tokens: what came as ``Authorization``.
        is_down: it answers 503 to everything.
    """

    def __init__(self) -> None:
        self._revisions: dict[str, dict[str, str]] = {}
        self._files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.is_down = False
        self.address = ""

    def publish(self, name: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Move a branch to new content, and return its commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self._revisions.setdefault(name, {}).update({revision: commit, commit: commit})
        self._files[name, commit] = dict(files)
        return commit

    def downloads(self) -> list[str]:
        """Say which files were sent."""
        return [each.rpartition("/")[2] for each in self.requests if each.startswith("GET") and "/resolve/" in each]

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(f"{method} {path}")
        if self.is_down:
            return 503, {}, b""
        kind, _, rest = unquote(path).removeprefix("/").partition("/")
        if kind == "api":
            owner, name, what, revision = rest.removeprefix("models/").split("/")[:4]
        else:
            owner, (name, what, revision, *steps) = kind, rest.split("/")
        name = f"{owner}/{name}"
        if name not in self._revisions:
            gated = name.startswith("gated/")
            return 403 if gated else 404, {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"}, b"{}"
        commit = self._revisions[name].get(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self._files[name, commit]
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
        if what == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        content = files["/".join(steps)]
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content


@contextmanager
def model_hub() -> Iterator[Hub]:
    """Run one."""
    hub = Hub()

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            status, headers, body = hub.answer(self.command, urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
