"""Errors of a deployment: told where it is built or started, and to Ray; no answers to requests."""

from __future__ import annotations

from registry_serve.errors.root import RegistryServeError


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


class ReplicaStuck(RegistryServeError):
    """``doing`` is what has not come back; ``seconds`` is since when."""

    code = "replica_stuck"
    title = "A model has not come back"
    fields = ("doing", "seconds")
    sentence = "{doing} has not come back for {seconds:.0f} s, so this replica should be replaced."
