"""Errors of the server: the request was right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from registry_serve.errors.root import RegistryServeError


class PredictionFailed(RegistryServeError):
    """The model raised, or answered something without a JSON form."""

    code = "prediction_failed"
    title = "The model failed"
    fields = ("model", "version", "happened")
    sentence = "Version {version} of {model!r} {happened}. The server's log has the cause under this request id."


class StreamingUnsupported(RegistryServeError):
    """Its ``predict`` can be used."""

    status = 501
    code = "streaming_unsupported"
    title = "The model answers in one piece only"
    fields = ("model", "version")
    sentence = "Version {version} of {model!r} cannot answer piece by piece. Ask without streaming."


class GenerationUnsupported(RegistryServeError):
    """It answers in its own format."""

    status = 501
    code = "generation_unsupported"
    title = "The model generates no text"
    fields = ("model", "version")
    sentence = (
        "Version {version} of {model!r} generates no text, so it answers nothing in OpenAI's format. Ask it at the "
        "paths that /docs shows."
    )


class LoadFailed(RegistryServeError):
    """``happened`` goes into a sentence."""

    code = "load_failed"
    title = "The version cannot be loaded"
    fields: ClassVar[tuple[str, ...]] = ("model", "version", "happened")
    sentence = "Version {version} of {model!r} cannot be loaded: {happened}."


class DiskFull(LoadFailed):
    """The server's log names the directory."""

    status = 507
    code = "disk_full"
    title = "The server's disk is full"
    retry_after = 30
    fields = ("model", "version")
    sentence = (
        "Version {version} of {model!r} cannot be loaded: the disk for model files on this server is full, also "
        "without the models that nobody uses. Free space on it, or let REGISTRY_SERVE_ARTIFACTS name a larger one."
    )


class CodeConflict(LoadFailed):
    """``module`` is the name that two versions bring different code under."""

    code = "code_conflict"
    title = "The version's Python code clashes with another version's"
    fields = ("model", "version", "module")
    sentence = (
        "Version {version} of {model!r} cannot be loaded here: it brings a Python module {module!r} (code_paths), "
        "and this replica has already imported other code under that name. Deploy with isolation=True: such versions "
        "then run in a process of their own."
    )


class EnvironmentConflict(LoadFailed):
    """``differences`` are mappings with ``requirement`` and ``installed``, which is None where nothing is."""

    code = "environment_conflict"
    title = "The version asks for other packages"
    fields = ("model", "version", "differences")

    #: How many differences the sentence names.
    MOST_NAMED: ClassVar[int] = 3

    @property
    def detail(self) -> str:
        differences = self.given["differences"]
        named = [f"{each['requirement']} (installed: {each['installed'] or 'none'})" for each in differences]
        others = len(named) - self.MOST_NAMED
        return (
            "Version {version} of {model!r} cannot be loaded: it asks for ".format(**self.given)
            + ", ".join(named[: self.MOST_NAMED])
            + (f" and {others} more" if others > 0 else "")
            + ". Install what it asks for, or deploy with environment='isolate' (packages only) or 'warn'."
        )

    @property
    def members(self) -> Mapping[str, Any]:
        return {"differences": list(self.given["differences"])}


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


class ModelProcessDied(RegistryServeError):
    """The version runs in a process of its own, and that has ended; the next request starts another."""

    status = 503
    code = "model_process_died"
    title = "The model's process has ended"
    retry_after = 1
    fields = ("model", "version")
    sentence = "The process of version {version} of {model!r} ended while it answered. Try again: it is loaded anew."


class Draining(RegistryServeError):
    """Another replica will answer."""

    status = 503
    code = "draining"
    title = "This replica is shutting down"
    retry_after = 1
    fields = ()
    sentence = "This replica is shutting down. Try again: another one answers."


class DeploymentUnavailable(RegistryServeError):
    """A persistent deployment cannot answer now; ``happened`` goes into a sentence."""

    status = 503
    code = "deployment_unavailable"
    title = "The deployment does not answer"
    retry_after = 2
    fields = ("name", "happened")
    sentence = "The deployment {name!r} {happened}. Try again in a moment."


class PredictionTimeout(RegistryServeError):
    """``seconds`` is the limit."""

    status = 504
    code = "prediction_timeout"
    title = "The model took too long"
    fields = ("model", "version", "seconds")
    sentence = "Version {version} of {model!r} did not answer within {seconds:g} s."
