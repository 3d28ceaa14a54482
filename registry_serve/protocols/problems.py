"""Errors as HTTP answers, in the form that the clients of a path know.

| paths    | form                                                                                       |
|----------|--------------------------------------------------------------------------------------------|
| ``/v1/`` | OpenAI's: ``{"error": {"message", "type", "param", "code"}}``; a wrong body is 400, not 422   |
| others   | ``application/problem+json``, RFC 9457                                                       |

Every error of ``registry_serve.errors`` becomes one here, by the attributes of its class. Anything else is a fault of
the server: it is logged in full and answered without a word about its cause.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from registry_serve.errors import RegistryServeError

logger = logging.getLogger(__name__)

#: ``type`` of a problem is this prefix and the error's code. It names the problem; it is no address to fetch.
TYPE_PREFIX = "urn:registry-serve:error:"
OPENAI_PREFIX = "/v1/"

_ROUTING_CODES = {404: ("not_found", "No such page"), 405: ("method_not_allowed", "Method not allowed")}
#: Where clients of OpenAI's format look for another word than ours.
_OPENAI_CODES = {"version_not_found": "model_not_found", "model_not_served": "model_not_found"}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class _Told:
    """What there is to tell of an error."""

    code: str
    title: str
    status: int
    detail: str
    members: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def problem(error: Exception, request_id: str, path: str = "") -> Response:
    """Return the answer that tells an error; server errors are logged with their cause.

    Args:
        error: whatever was raised.
        request_id: of the request.
        path: that was asked for, without the deployment's prefix.
    """
    told = _told(error)
    if told.status == 500:
        log_server_error(error, request_id)
    form = next(form for prefix, form in _FORMS if path.startswith(prefix))
    return form(told, request_id)


def path_of(scope: Scope) -> str:
    """Return the path that was asked for, without the deployment's prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def log_server_error(error: Exception, request_id: str) -> None:
    """Write down what an answer tells nothing of."""
    logger.error("Request %s failed: %s", request_id, error, exc_info=error)


def problem_body(error: RegistryServeError, request_id: str) -> bytes:
    """Return an error as RFC 9457 has it, where it is told within an answer."""
    return to_json(_problem(_ours(error), request_id))


def openai_body(error: RegistryServeError) -> bytes:
    """Return an error as OpenAI's clients know it, where it is told within an answer."""
    return to_json(_openai(_ours(error)))


def _told(error: Exception) -> _Told:
    if isinstance(error, RegistryServeError):
        return _ours(error)
    if isinstance(error, HTTPException):
        return _routing(error)
    return _ours(RegistryServeError("An unexpected error; the server's log has the cause."))


def _ours(error: RegistryServeError) -> _Told:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _Told(error.code, error.title, error.status, error.detail, error.members, headers)


def _routing(error: HTTPException) -> _Told:
    code, title = _ROUTING_CODES.get(error.status_code, ("http_error", "The request cannot be answered"))
    detail = f"{title}. What this endpoint offers is described at /docs below its prefix."
    return _Told(code, title, error.status_code, detail, headers=dict(error.headers or {}))


def _problem_answer(told: _Told, request_id: str) -> Response:
    return Response(to_json(_problem(told, request_id)), told.status, told.headers, "application/problem+json")


def _problem(told: _Told, request_id: str) -> dict[str, Any]:
    # `error` repeats the detail for clients of servers that know no RFC 9457.
    return {
        "type": TYPE_PREFIX + told.code,
        "title": told.title,
        "status": told.status,
        "detail": told.detail,
        "code": told.code,
        "error": told.detail,
        **told.members,
        "request_id": request_id,
    }


def _openai_answer(told: _Told, request_id: str) -> Response:
    status = 400 if told.status == 422 else told.status
    return Response(to_json(_openai(told)), status, told.headers, "application/json")


def _openai(told: _Told) -> dict[str, Any]:
    code = _OPENAI_CODES.get(told.code, told.code)
    kind = "server_error" if told.status >= 500 else _OPENAI_TYPES.get(told.status, "invalid_request_error")
    faults = told.members.get("errors") or [{"location": ["model"] if code == "model_not_found" else []}]
    return {"error": {"message": told.detail, "type": kind, "param": _written(faults[0]["location"]), "code": code}}


def _written(location: list[str | int]) -> str | None:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".") or None


_FORMS: tuple[tuple[str, Callable[[_Told, str], Response]], ...] = (
    (OPENAI_PREFIX, _openai_answer),
    ("", _problem_answer),
)
