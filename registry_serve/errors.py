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
    """The root of the tree.

    Attributes:
        status: the HTTP status it is answered with.
        code: a stable word for programs and alerts.
        title: the same for people, equal for all errors of one class.
        retry_after: seconds after which trying again makes sense, sent as ``Retry-After``.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None

    @property
    def detail(self) -> str:
        """What happened and what to do next, in a sentence or two."""
        return str(self.args[0]) if self.args else self.title

    @property
    def members(self) -> Mapping[str, Any]:
        """Extension members for the error's body (RFC 9457, section 3.2)."""
        return {}

    def __str__(self) -> str:
        """Return the detail."""
        return self.detail


class ConfigurationError(RegistryServeError):
    """The deployment cannot be built as asked. ``args``: detail."""

    code = "configuration_error"
    title = "The deployment is misconfigured"


class SignatureMissing(ConfigurationError):
    """``args``: model name, version."""

    code = "signature_missing"
    title = "The model version has no signature"

    @property
    def detail(self) -> str:
        model, version = self.args
        return (
            f"Version {version} of {model!r} was logged without a signature, so there is no API to generate. "
            "Log it again with input_example=... (MLflow then infers the signature) or with "
            "signature=mlflow.models.infer_signature(inputs, outputs), and serve the new version."
        )


class SignatureUnsupported(ConfigurationError):
    """A type of the signature has no JSON form. ``args``: detail."""

    code = "signature_unsupported"
    title = "The model's signature cannot be served as JSON"


class WarmUpFailed(RegistryServeError):
    """The default version cannot answer its own input example, so the replica is not ready. ``args``: detail."""

    code = "warm_up_failed"
    title = "The model cannot answer its own input example"


class MalformedJSON(RegistryServeError):
    """``args``: reason, line, column (both counted from 1; 0 where unknown)."""

    status = 400
    code = "malformed_json"
    title = "The body is not JSON"

    @property
    def detail(self) -> str:
        reason, line, column = self.args
        return f"The body is not JSON: {reason} at line {line}, column {column}."

    @property
    def members(self) -> Mapping[str, Any]:
        _, line, column = self.args
        return {"position": {"line": line, "column": column}}


class VersionReferenceConflict(RegistryServeError):
    """Header and path, or the two spellings of the header, ask for different versions. ``args``: detail."""

    status = 400
    code = "version_reference_conflict"
    title = "Two different versions were asked for"


class Unauthenticated(RegistryServeError):
    """``args``: none."""

    status = 401
    code = "unauthenticated"
    title = "API key missing or wrong"

    @property
    def detail(self) -> str:
        return "Send a valid API key as 'Authorization: Bearer KEY'."


class VersionForbidden(RegistryServeError):
    """``args``: model name, version, what the policy allows."""

    status = 403
    code = "version_forbidden"
    title = "The version is not allowed here"

    @property
    def detail(self) -> str:
        model, version, allowed = self.args
        return f"Version {version} of {model!r} may not be served by this deployment, which allows {allowed}."


class ForeignOrigin(RegistryServeError):
    """``args``: none."""

    status = 403
    code = "foreign_origin"
    title = "Requests from other sites are refused"

    @property
    def detail(self) -> str:
        return "The Origin header names another site than the one this request was sent to."


class ModelNotFound(RegistryServeError):
    """``args``: model name."""

    status = 404
    code = "model_not_found"
    title = "No such registered model"

    @property
    def detail(self) -> str:
        return f"The registry has no registered model {self.args[0]!r}."


class VersionNotFound(RegistryServeError):
    """``args``: model name, the reference that was asked for, references that exist (newest first)."""

    status = 404
    code = "version_not_found"
    title = "No such version"

    @property
    def detail(self) -> str:
        model, reference, available = self.args
        named = ", ".join(available) if available else "none"
        return f"{model!r} has no version or alias {reference!r}. Available: {named}."

    @property
    def members(self) -> Mapping[str, Any]:
        _, reference, available = self.args
        return {"requested_version": reference, "available": list(available)}


class SignatureConflict(RegistryServeError):
    """``args``: model name, requested version, default version, differences (as JSON-ready mappings)."""

    status = 409
    code = "signature_conflict"
    title = "The version's signature breaks the contract"

    @property
    def differences(self) -> Sequence[Mapping[str, Any]]:
        """One mapping per difference, with ``where``, ``column``, ``expected``, ``found`` and a ``message``."""
        differences: Sequence[Mapping[str, Any]] = self.args[3]
        return differences

    @property
    def detail(self) -> str:
        model, requested, default, differences = self.args
        reasons = "; ".join(difference["message"] for difference in differences)
        return (
            f"Version {requested} of {model!r} does not answer the API of version {default}, "
            f"which this endpoint serves: {reasons}."
        )

    @property
    def members(self) -> Mapping[str, Any]:
        _, requested, default, differences = self.args
        return {"requested_version": requested, "default_version": default, "differences": list(differences)}


class BodyTooLarge(RegistryServeError):
    """``args``: limit in bytes."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"

    @property
    def detail(self) -> str:
        return f"The body is larger than the limit of {self.args[0]} bytes. Send fewer rows per request."

    @property
    def members(self) -> Mapping[str, Any]:
        return {"limit_bytes": self.args[0]}


class InvalidRequest(RegistryServeError):
    """``args``: list of ``{"location": [...], "message": ...}``, without the offending values."""

    status = 422
    code = "invalid_request"
    title = "The body does not fit the model's signature"

    #: How many faults are named at the most: a body of a million wrong rows gets a short answer.
    MOST_ERRORS: ClassVar[int] = 20

    @property
    def errors(self) -> Sequence[Mapping[str, Any]]:
        """The faults, each at its place in the body."""
        errors: Sequence[Mapping[str, Any]] = self.args[0]
        return errors[: self.MOST_ERRORS]

    @property
    def detail(self) -> str:
        first = self.errors[0]
        place = ".".join(str(step) for step in first["location"])
        more = f" (and {len(self.args[0]) - 1} more)" if len(self.args[0]) > 1 else ""
        return f"{place or 'The body'} {first['message']}{more}."

    @property
    def members(self) -> Mapping[str, Any]:
        return {"errors": list(self.errors)}


class TooManyRequests(RegistryServeError):
    """``args``: how many requests may be pending on one replica."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests are waiting"
    retry_after = 1

    @property
    def detail(self) -> str:
        return f"{self.args[0]} requests are already pending on this replica. Try again shortly."


class PredictionFailed(RegistryServeError):
    """The model raised, or answered something without a JSON form. ``args``: model name, version, what happened."""

    code = "prediction_failed"
    title = "The model failed"

    @property
    def detail(self) -> str:
        model, version, happened = self.args
        return f"Version {version} of {model!r} {happened}. The server's log has the cause under this request id."


class LoadFailed(RegistryServeError):
    """``args``: model name, version, what happened."""

    code = "load_failed"
    title = "The version cannot be loaded"

    @property
    def detail(self) -> str:
        model, version, happened = self.args
        return f"Version {version} of {model!r} cannot be loaded: {happened}."


class CodeConflict(LoadFailed):
    """``args``: model name, version, the module's name."""

    code = "code_conflict"
    title = "The version's Python code clashes with another version's"

    @property
    def detail(self) -> str:
        model, version, module = self.args
        return (
            f"Version {version} of {model!r} cannot be loaded here: it brings a Python module {module!r} (code_paths), "
            "and this replica has already imported other code under that name. "
            "Serve it from a deployment of its own."
        )


class RegistryUnavailable(RegistryServeError):
    """``args``: what was asked of the registry."""

    status = 503
    code = "registry_unavailable"
    title = "The model registry does not answer"
    retry_after = 5

    @property
    def detail(self) -> str:
        return f"The model registry does not answer ({self.args[0]}). Versions already loaded keep answering."


class VersionLoading(RegistryServeError):
    """``args``: model name, version, seconds waited."""

    status = 503
    code = "version_loading"
    title = "The version is still loading"
    retry_after = 5

    @property
    def detail(self) -> str:
        model, version, seconds = self.args
        return f"Version {version} of {model!r} is still loading after {seconds:g} s. It goes on loading: try again."


class Draining(RegistryServeError):
    """``args``: none."""

    status = 503
    code = "draining"
    title = "This replica is shutting down"
    retry_after = 1


class PredictionTimeout(RegistryServeError):
    """``args``: model name, version, limit in seconds."""

    status = 504
    code = "prediction_timeout"
    title = "The model took too long"

    @property
    def detail(self) -> str:
        model, version, seconds = self.args
        return f"Version {version} of {model!r} did not answer within {seconds:g} s."
