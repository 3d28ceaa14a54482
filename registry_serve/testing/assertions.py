"""What every error looks like."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from registry_serve.protocols.problems import TYPE_PREFIX

_MEMBERS = {"type", "title", "status", "detail", "code", "error", "request_id"}
#: Beginnings of what Python writes when something is raised.
_TRACES = ("Traceback (most recent call last)", 'File "')


class Response(Protocol):
    """An answer, as httpx, requests and Starlette's test client give it."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Any: ...

    @property
    def text(self) -> str: ...

    def json(self) -> Any: ...


def assert_problem(response: Response, status: int, code: str, *, never: Collection[str] = ()) -> dict[str, Any]:
    """Make sure that an answer is an error in the one shape of all errors, and this one.

        told = assert_problem(client.post("/predict", json={}), 422, "invalid_request", never=["a secret"])

    Args:
        response: the answer.
        status: its status must be this.
        code: and its code this.
        never: texts that it must not hold: a caller's data, paths, keys.

    Returns:
        What the error tells, decoded.

    Raises:
        AssertionError: it is no such error; the message says in what.
    """
    found = f"{response.status_code} {response.headers.get('content-type')}: {response.text[:500]}"
    assert response.status_code == status, f"expected status {status}, got {found}"
    assert response.headers["content-type"] == "application/problem+json", f"expected a problem, got {found}"
    told: dict[str, Any] = response.json()
    assert told.get("code") == code, f"expected the code {code!r}, got {told.get('code')!r}: {told.get('detail')}"
    missing = _MEMBERS - told.keys()
    assert not missing, f"the error has no {', '.join(sorted(missing))}: {found}"
    assert told["type"] == TYPE_PREFIX + code, f"the type {told['type']!r} does not belong to the code {code!r}"
    assert told["status"] == status, f"the body says status {told['status']}, the answer has {status}"
    assert told["error"] == told["detail"], "'error' must repeat 'detail'"
    assert told["request_id"] == response.headers.get("x-request-id"), "the request id is not that of x-request-id"
    for text in (*_TRACES, *never):
        assert text not in response.text, f"the error must not hold {text!r}: {found}"
    return told
