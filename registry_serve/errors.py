"""Every error that leaves this package, each with its HTTP status, a stable code and a title.

    RegistryServeError
    ├── ConfigurationError                the deployment cannot be built as asked (never an answer to a request)
    │   ├── SignatureMissing              the model version was logged without a signature
    │   └── SignatureUnsupported          the signature has a type that has no JSON form
    ├── WarmUpFailed                      the default version cannot answer its own input example
    ├── MalformedJSON              400    the body is not JSON
    ├── VersionReferenceConflict   400    two different versions were asked for at once
    ├── Unauthenticated            401    API key missing or wrong
    ├── VersionForbidden           403    the version policy does not allow this version
    ├── ForeignOrigin              403    a browser page of another site sent the request
    ├── ModelNotFound              404
    ├── VersionNotFound            404
    ├── SignatureConflict          409    the version's signature breaks the contract
    ├── BodyTooLarge               413
    ├── InvalidRequest             422    the body does not fit the schema
    ├── PredictionFailed           500    the model raised, or its answer has no JSON form
    ├── LoadFailed                 500    the version cannot be loaded
    │   └── CodeConflict           500    it brings Python modules that clash with another version's
    ├── TooManyRequests            429    too many requests are waiting        (Retry-After)
    ├── RegistryUnavailable        503    the registry does not answer         (Retry-After)
    ├── VersionLoading             503    loading outlasts the caller's wait   (Retry-After)
    ├── Draining                   503    this replica is shutting down        (Retry-After)
    └── PredictionTimeout          504

An error is built from plain positional arguments that it keeps in ``args``, so that it survives pickling on its
way through a ``DeploymentHandle``. ``str(error)`` is the sentence a client may read: it never holds the
caller's data, a path on the server, or a stack trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class RegistryServeError(Exception):
    """The root of the tree. ``args`` are the values of ``fields``, in that order.

    Attributes:
        status: the HTTP status it is answered with.
        code: a stable word for programs and alerts.
        title: the same for people, equal for all errors of one class.
        retry_after: seconds after which trying again makes sense, sent as ``Retry-After``.
        fields: names of the arguments.
        sentence: what happened and what to do next, with places for the arguments.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None
    fields: ClassVar[tuple[str, ...]] = ("detail",)
    sentence: ClassVar[str] = "{detail}"

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name."""
        return dict(zip(self.fields, self.args, strict=False))

    @property
    def detail(self) -> str:
        """The sentence that a client reads."""
        return self.sentence.format(**self.given) if len(self.args) >= len(self.fields) else self.title

    @property
    def members(self) -> Mapping[str, Any]:
        """Extension members for the error's body (RFC 9457, section 3.2)."""
        return {}

    def __str__(self) -> str:
        """Return the detail."""
        return self.detail


# --- raised where a deployment is built or started -------------------------------------------------------------------


class ConfigurationError(RegistryServeError):
    """The deployment cannot be built as asked."""

    code = "configuration_error"
    title = "The deployment is misconfigured"


class SignatureMissing(ConfigurationError):
    """There is no API to generate."""

    code = "signature_missing"
    title = "The model version has no signature"
    fields = ("model", "version")
    sentence = (
        "Version {version} of {model!r} was logged without a signature, so there is no API to generate. "
        "Log it again with input_example=... (MLflow then infers the signature) or with "
        "signature=mlflow.models.infer_signature(inputs, outputs), and serve the new version."
    )


class SignatureUnsupported(ConfigurationError):
    """A type of the signature has no JSON form."""

    code = "signature_unsupported"
    title = "The model's signature cannot be served as JSON"


class WarmUpFailed(RegistryServeError):
    """The default version cannot answer its own input example, so the replica is not ready."""

    code = "warm_up_failed"
    title = "The model cannot answer its own input example"


# --- the client's ----------------------------------------------------------------------------------------------------


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


# --- the server's ----------------------------------------------------------------------------------------------------


class PredictionFailed(RegistryServeError):
    """The model raised, or answered something without a JSON form."""

    code = "prediction_failed"
    title = "The model failed"
    fields = ("model", "version", "happened")
    sentence = "Version {version} of {model!r} {happened}. The server's log has the cause under this request id."


class LoadFailed(RegistryServeError):
    """``happened`` goes into a sentence."""

    code = "load_failed"
    title = "The version cannot be loaded"
    fields = ("model", "version", "happened")
    sentence = "Version {version} of {model!r} cannot be loaded: {happened}."


class CodeConflict(LoadFailed):
    """``module`` is the name that two versions bring different code under."""

    code = "code_conflict"
    title = "The version's Python code clashes with another version's"
    fields = ("model", "version", "module")
    sentence = (
        "Version {version} of {model!r} cannot be loaded here: it brings a Python module {module!r} (code_paths), "
        "and this replica has already imported other code under that name. Serve it from a deployment of its own."
    )


class RegistryUnavailable(RegistryServeError):
    """``question`` is what was asked of the registry."""

    status = 503
    code = "registry_unavailable"
    title = "The model registry does not answer"
    retry_after = 5
    fields = ("question",)
    sentence = "The model registry does not answer ({question}). Versions already loaded keep answering."


class VersionLoading(RegistryServeError):
    """``seconds`` is how long the caller waited."""

    status = 503
    code = "version_loading"
    title = "The version is still loading"
    retry_after = 5
    fields = ("model", "version", "seconds")
    sentence = "Version {version} of {model!r} is still loading after {seconds:g} s. It goes on loading: try again."


class Draining(RegistryServeError):
    """Another replica will answer."""

    status = 503
    code = "draining"
    title = "This replica is shutting down"
    retry_after = 1
    fields = ()
    sentence = "This replica is shutting down. Try again: another one answers."


class PredictionTimeout(RegistryServeError):
    """``seconds`` is the limit."""

    status = 504
    code = "prediction_timeout"
    title = "The model took too long"
    fields = ("model", "version", "seconds")
    sentence = "Version {version} of {model!r} did not answer within {seconds:g} s."
