"""An endpoint as a client sees it: what is sent to it, and what comes back."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from registry_serve.cli.access import LOOPBACK, authorization
from registry_serve.cli.example import example_request
from registry_serve.errors import ConfigurationError, EndpointFailed
from registry_serve.protocols.prediction import VERSION_HEADERS

#: Paths that a client may have at the end of its URL; what is asked for then stands beside them.
_ASKED = re.compile(r"(?:/versions/[^/]+)?/(?:serve|predict|predict_stream|ping)$")
_PREDICTS = re.compile(r"/(?:serve|predict)$")
#: Of an answer that is no JSON, so many characters are told.
_LONGEST_TEXT = 200


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn a POST into a GET, and take the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Endpoint:
    """What answers below a URL.

    Args:
        url: with or without ``http://``, and with or without the path of its predictions.
        api_key_file: the first key in it is sent along.
        timeout_s: how long it may take to answer.
    """

    def __init__(self, url: str, *, api_key_file: str | Path | None = None, timeout_s: float = 60.0) -> None:
        url = url if "://" in url else f"http://{url}"
        parts = _split(url)
        path = parts.path.rstrip("/")
        self.url = urlunsplit(parts._replace(path=path, query="", fragment=""))
        self._below = self.url.removesuffix(path) + _ASKED.sub("", path)
        self._predictions = self.url if _PREDICTS.search(path) else f"{self._below}/predict"
        self._headers = authorization(api_key_file)
        self._timeout_s = timeout_s
        # Nothing on this machine is reached through a proxy, whatever the environment says.
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in (LOOPBACK, "localhost", "::1") else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def ping(self) -> int:
        """Return the status of a successful answer to ``GET /ping``.

        Raises:
            EndpointFailed: it does not answer, or is not ready.
        """
        with self._asked(f"{self._below}/ping") as answer:
            return answer.status

    def predict(self, body: bytes, version: str | None = None) -> bytes:
        """Return what it answers.

        Raises:
            EndpointFailed: it does not answer, or refuses; the message is its own.
        """
        with self._asked(self._predictions, body, version) as answer:
            return answer.read()

    def stream(self, body: bytes, version: str | None = None) -> Iterator[bytes]:
        """Yield the lines of its answer while they come; empty ones do not count.

        Raises:
            EndpointFailed: it does not answer, refuses, or breaks off.
        """
        with self._asked(f"{self._below}/predict_stream", body, version) as answer:
            for line in filter(None, map(bytes.strip, answer)):
                _raise_if_broken_off(line)
                yield line

    def described(self) -> Any | None:
        """Return what ``GET /model`` tells, or None where that is not to be had."""
        return self._page("/model")

    def example(self) -> tuple[str, Any] | None:
        """Return a path and a body to try it with, or None where it tells of none."""
        document: Any = self._page("/openapi.json")
        # Other servers describe themselves in other ways.
        with suppress(AttributeError, LookupError, StopIteration, TypeError):
            return example_request(document)
        return None

    def _page(self, path: str) -> Any | None:
        try:
            with self._asked(f"{self._below}{path}") as answer:
                return json.load(answer)
        except (EndpointFailed, ValueError):
            return None

    @contextmanager
    def _asked(self, url: str, body: bytes | None = None, version: str | None = None) -> Iterator[HTTPResponse]:
        headers = {**self._headers, "content-type": "application/json"}
        if version is not None:
            headers[VERSION_HEADERS[1]] = version
        try:
            request = urllib.request.Request(url, body, headers)  # noqa: S310 - http or https, checked above
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                yield answer
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise EndpointFailed(_told(url, refusal)) from None
        except TimeoutError:
            raise EndpointFailed(self._too_late(url)) from None
        except (OSError, HTTPException, UnicodeError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise EndpointFailed(self._too_late(url)) from None
            said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise EndpointFailed(
                f"{url} does not answer: {_one_line(said)}. "
                "`registry-serve get deployments` tells what runs, and where."
            ) from None

    def _too_late(self, url: str) -> str:
        return f"{url} did not answer within {self._timeout_s:g} s. Give it more time with --timeout SECONDS."


def _raise_if_broken_off(line: bytes) -> None:
    # The status was sent before it went wrong: such a line takes its place, and is the last.
    with suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and told.keys() == {"error", "code"}:
            raise EndpointFailed(_one_line(str(told["error"])))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise ConfigurationError(f"{url!r} is no address of an endpoint. One reads like http://127.0.0.1:8000/name.")


def _told(url: str, refusal: urllib.error.HTTPError) -> str:
    """Make one line of an answer that is none: its own words, where it has any."""
    try:
        body = refusal.read()
    except (OSError, HTTPException):
        body = b""
    words = _words(body, refusal.headers.get_content_type())
    if words is None:
        words = f"{url} answered {refusal.code} {refusal.reason}".strip() + "."
    else:
        words = f"{words} (HTTP {refusal.code})"
    return f"{words} Send a key with --api-key-file FILE." if refusal.code == 401 else words


def _words(body: bytes, kind: str) -> str | None:
    try:
        told = json.loads(body)
    except ValueError:
        text = _one_line(body.decode("utf-8", "replace"))
        return text[:_LONGEST_TEXT] if text and kind != "text/html" else None
    for name in ("detail", "error", "message"):
        if isinstance(told, dict) and told.get(name):
            told = told[name]
    return _one_line(told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)) or None


def _one_line(text: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
