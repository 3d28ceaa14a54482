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


class HandlerInvalid(ConfigurationError):
    """``handler`` is its dotted path or name, ``reason`` goes into a sentence."""

    code = "handler_invalid"
    title = "The model handler cannot be used"
    fields = ("handler", "reason")
    sentence = "The model handler {handler!r} cannot be used: {reason}."


class DownloadFailed(ConfigurationError):
    """``what`` is what was downloaded, without credentials; ``reason`` goes into a sentence."""

    code = "download_failed"
    title = "The model's files cannot be downloaded"
    fields = ("what", "reason")
    sentence = "{what} cannot be downloaded: {reason}."


class DeploymentFileInvalid(ConfigurationError):
    """``file`` is its path, ``line`` is counted from 1, ``reason`` names the key and says what was expected."""

    code = "deployment_file_invalid"
    title = "The deployment file is not valid"
    fields = ("file", "line", "reason")
    sentence = "{file}, line {line}: {reason}."


class DeploymentNotFound(ConfigurationError):
    """``available`` are the names that there are."""

    code = "deployment_not_found"
    title = "No such deployment"
    fields = ("name", "available")

    @property
    def detail(self) -> str:
        named = ", ".join(self.given["available"]) or "none"
        return f"There is no deployment {self.given['name']!r}. There are: {named}."


class DeploymentEnded(DeploymentNotFound):
    """Its cluster has ended, or it was taken off, without anybody's saying so. ``available`` are the others."""

    code = "deployment_ended"
    title = "The deployment has ended"
    sentence = (
        "The deployment {name!r} is not there any more: its Ray cluster has ended, or somebody took it off. What was "
        "written down of it is removed. Serve it again."
    )

    @property
    def detail(self) -> str:
        return self.sentence.format(**self.given)


class UnknownArgument(ConfigurationError, ValueError):
    """A keyword that nobody knows. ``known`` are those that there are."""

    status = 422
    code = "unknown_argument"
    title = "The keyword is unknown"
    fields = ("name", "known")

    @property
    def detail(self) -> str:
        return f"There is no {self.given['name']!r}. There are: {', '.join(self.given['known'])}."


class EndpointFailed(RegistryServeError):
    """A deployment that was asked over HTTP did not answer as it should."""

    code = "endpoint_failed"
    title = "The deployment did not answer"


class ResourcesMissing(ConfigurationError):
    """The cluster has not what the replicas ask for, and waiting would not help."""

    code = "resources_missing"
    title = "The cluster has not what is asked for"


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
