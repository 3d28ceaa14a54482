"""Errors of the client: its request cannot be answered as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from registry_serve.errors.root import RegistryServeError


class MalformedJSON(RegistryServeError):
    """``line`` and ``column`` are counted from 1; 0 where unknown."""

    status = 400
    code = "malformed_json"
    title = "The body is not JSON"
    fields = ("reason", "line", "column")
    sentence = "The body is not JSON: {reason} at line {line}, column {column}."

    @property
    def members(self) -> Mapping[str, Any]:
        return {"position": {"line": self.given["line"], "column": self.given["column"]}}


class TooManyTokens(RegistryServeError):
    """``asked`` are the tokens of prompt and answer together, ``limit`` is how many one request may have."""

    status = 400
    code = "too_many_tokens"
    title = "Prompt and answer together are too long"
    fields = ("asked", "limit")
    sentence = (
        "Prompt and answer may have {asked} tokens together, and this server holds {limit} for one request. "
        "Shorten the prompt, or ask for fewer new tokens."
    )

    @property
    def members(self) -> Mapping[str, Any]:
        return {"limit_tokens": self.given["limit"]}


class VersionReferenceConflict(RegistryServeError):
    """Header and path, or the two spellings of the header, ask for different versions."""

    status = 400
    code = "version_reference_conflict"
    title = "Two different versions were asked for"


class Unauthenticated(RegistryServeError):
    """There are keys, and none of them came."""

    status = 401
    code = "unauthenticated"
    title = "API key missing or wrong"
    fields = ()
    sentence = "Send a valid API key as 'Authorization: Bearer KEY'."


class VersionForbidden(RegistryServeError):
    """The version exists."""

    status = 403
    code = "version_forbidden"
    title = "The version is not allowed here"
    fields = ("model", "version", "allowed")
    sentence = "Version {version} of {model!r} may not be served by this deployment, which allows {allowed}."


class ForeignOrigin(RegistryServeError):
    """A browser sent it from another site's page."""

    status = 403
    code = "foreign_origin"
    title = "Requests from other sites are refused"
    fields = ()
    sentence = "The Origin header names another site than the one this request was sent to."


class ModelNotFound(RegistryServeError):
    """The registry answers, and knows no such model."""

    status = 404
    code = "model_not_found"
    title = "No such registered model"
    fields = ("model",)
    sentence = "The registry has no registered model {model!r}."


class VersionNotFound(RegistryServeError):
    """``available`` are references that exist: aliases, then numbers, newest first."""

    status = 404
    code = "version_not_found"
    title = "No such version"
    fields = ("model", "reference", "available")

    @property
    def detail(self) -> str:
        named = ", ".join(self.given["available"]) or "none"
        return "{model!r} has no version or alias {reference!r}. Available: ".format(**self.given) + f"{named}."

    @property
    def members(self) -> Mapping[str, Any]:
        return {"requested_version": self.given["reference"], "available": list(self.given["available"])}


class ModelNotServed(RegistryServeError):
    """``served`` is what the deployment serves, ``model`` the name that a request in OpenAI's format gave."""

    status = 404
    code = "model_not_served"
    title = "Another model is served here"
    fields = ("served", "model")
    sentence = "This deployment serves {served!r}, and not {model!r}. GET /v1/models lists the names that it takes."


class BodyTimeout(RegistryServeError):
    """``seconds`` is the limit."""

    status = 408
    code = "body_timeout"
    title = "The body did not arrive in time"
    fields = ("seconds",)
    sentence = "The request's body did not arrive completely within {seconds:g} s."


class SignatureConflict(RegistryServeError):
    """``differences`` are mappings with ``where``, ``column``, ``kind``, ``expected``, ``found`` and ``message``."""

    status = 409
    code = "signature_conflict"
    title = "The version's signature breaks the contract"
    fields = ("model", "requested", "default", "differences")

    @property
    def differences(self) -> Sequence[Mapping[str, Any]]:
        """What differs, ready for JSON."""
        found: Sequence[Mapping[str, Any]] = self.given["differences"]
        return found

    @property
    def detail(self) -> str:
        answers = "Version {requested} of {model!r} does not answer the API of version {default}".format(**self.given)
        reasons = "; ".join(difference["message"] for difference in self.differences)
        return f"{answers}, which this endpoint serves: {reasons}."

    @property
    def members(self) -> Mapping[str, Any]:
        versions = {"requested_version": self.given["requested"], "default_version": self.given["default"]}
        return {**versions, "differences": list(self.differences)}


class BodyTooLarge(RegistryServeError):
    """``limit`` is in bytes."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"
    fields = ("limit",)
    sentence = "The body is larger than the limit of {limit} bytes. Send fewer rows per request."

    @property
    def members(self) -> Mapping[str, Any]:
        return {"limit_bytes": self.given["limit"]}


class InvalidRequest(RegistryServeError):
    """The body does not fit the schema.

    ``faults`` is a list of ``{"location": [...], "message": ...}``, without the offending values; ``beyond`` says how
    many there are besides, None where nobody went on counting.
    """

    status = 422
    code = "invalid_request"
    title = "The body does not fit the model's signature"
    fields = ("faults", "beyond")

    #: How many faults are named at the most: a body of a million wrong rows gets a short answer.
    MOST_ERRORS: ClassVar[int] = 20

    def __init__(self, faults: Sequence[Mapping[str, Any]], beyond: int | None = 0) -> None:
        """Keep as many faults as are named, and count the others."""
        if beyond is not None:
            beyond += max(0, len(faults) - self.MOST_ERRORS)
        super().__init__(list(faults[: self.MOST_ERRORS]), beyond)

    @classmethod
    def together(cls, parts: Sequence[InvalidRequest], *, complete: bool = True) -> InvalidRequest:
        """Make one error of several about one body; ``complete`` says whether all of it was looked at."""
        counts = [part.given["beyond"] for part in parts]
        beyond = sum(counts) if complete and None not in counts else None
        return cls([fault for part in parts for fault in part.errors], beyond)

    @property
    def errors(self) -> Sequence[Mapping[str, Any]]:
        """The first faults, each at its place in the body."""
        errors: Sequence[Mapping[str, Any]] = self.given["faults"]
        return errors

    @property
    def detail(self) -> str:
        first, beyond = self.errors[0], self.given["beyond"]
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["location"])
        place = "".join(steps).removeprefix(".") or "The body"
        if beyond is None:
            return f"{place} {first['message']} (and more)."
        others = len(self.errors) - 1 + beyond
        return f"{place} {first['message']}{f' (and {others} more)' if others else ''}."

    @property
    def members(self) -> Mapping[str, Any]:
        return {"errors": list(self.errors)}


class TooManyRequests(RegistryServeError):
    """``limit`` is how many requests may be pending on one replica."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests are waiting"
    retry_after = 1
    fields = ("limit",)
    sentence = "There are already {limit} requests pending on this replica. Try again shortly."


class VersionOverloaded(TooManyRequests):
    """``limit`` is how many requests may wait for one version; others are not affected."""

    code = "version_overloaded"
    sentence = "There are already {limit} requests waiting for this version on this replica. Try again shortly."


class RateLimited(RegistryServeError):
    """``limit`` is how many requests a second a replica takes, ``seconds`` after how many it takes the next."""

    status = 429
    code = "rate_limit_exceeded"
    title = "Rate limit exceeded"
    fields = ("limit", "seconds")
    sentence = "A replica of this deployment takes {limit:g} requests per second. Try again shortly."

    @property
    def retry_after(self) -> int:  # type: ignore[override]
        """Seconds until the next is let in."""
        return int(self.given["seconds"])

    @property
    def members(self) -> Mapping[str, Any]:
        # Clients of MosaicML look for these words in this member.
        return {"error": self.title, "limit_per_second": self.given["limit"]}
