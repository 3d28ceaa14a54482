"""Errors as HTTP answers: ``application/problem+json``, RFC 9457.

Every error of ``registry_serve.errors`` becomes one here, by the attributes of its class. Anything else is a fault of
the server: it is logged in full and answered without a word about its cause.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from registry_serve.errors import RegistryServeError

logger = logging.getLogger(__name__)

#: ``type`` of a problem is this prefix and the error's code. It names the problem; it is no address to fetch.
TYPE_PREFIX = "urn:registry-serve:error:"

_ROUTING_CODES = {404: ("not_found", "No such page"), 405: ("method_not_allowed", "Method not allowed")}


def problem(error: Exception, request_id: str) -> Response:
    """Return the answer that tells an error; server errors are logged with their cause."""
    if isinstance(error, RegistryServeError):
        body, status, headers = _ours(error)
    elif isinstance(error, HTTPException):
        body, status, headers = _routing(error)
    else:
        body, status, headers = _ours(RegistryServeError("An unexpected error; the server's log has the cause."))
    if status == 500:
        log_server_error(error, request_id)
    body["request_id"] = request_id
    return Response(to_json(body), status, headers, "application/problem+json")


def log_server_error(error: Exception, request_id: str) -> None:
    """Write down what an answer tells nothing of."""
    logger.error("Request %s failed: %s", request_id, error, exc_info=error)


def _ours(error: RegistryServeError) -> tuple[dict[str, Any], int, dict[str, str]]:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _body(error.code, error.title, error.status, error.detail, **error.members), error.status, headers


def _routing(error: HTTPException) -> tuple[dict[str, Any], int, dict[str, str]]:
    code, title = _ROUTING_CODES.get(error.status_code, ("http_error", "The request cannot be answered"))
    detail = f"{title}. What this endpoint offers is described at /docs below its prefix."
    return _body(code, title, error.status_code, detail), error.status_code, dict(error.headers or {})


def _body(code: str, title: str, status: int, detail: str, **members: Any) -> dict[str, Any]:
    # `error` repeats the detail for clients of servers that know no RFC 9457.
    return {
        "type": TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "error": detail,
        **members,
    }
