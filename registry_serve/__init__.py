"""Take a model in an MLflow registry online with one line, on Ray Serve.

from ray import serve
from registry_serve import deployment_from_model_name

serve.run(deployment_from_model_name("translation_model").bind())
"""

import importlib
import typing

from registry_serve.errors import (
    BodyTimeout,
    BodyTooLarge,
    CodeConflict,
    ConfigurationError,
    DeploymentEnded,
    DeploymentFileInvalid,
    DeploymentNotFound,
    DeploymentUnavailable,
    DiskFull,
    DownloadFailed,
    Draining,
    EndpointFailed,
    EnvironmentConflict,
    ForeignOrigin,
    GenerationUnsupported,
    HandlerInvalid,
    InvalidRequest,
    LoadFailed,
    MalformedJSON,
    ModelNotFound,
    ModelNotServed,
    ModelProcessDied,
    PredictionFailed,
    PredictionTimeout,
    RateLimited,
    RegistryServeError,
    RegistryUnavailable,
    ReplicaStuck,
    ResourcesMissing,
    SignatureConflict,
    SignatureMissing,
    SignatureUnsupported,
    StreamingUnsupported,
    TooManyRequests,
    TooManyTokens,
    Unauthenticated,
    UnknownArgument,
    VersionForbidden,
    VersionLoading,
    VersionNotFound,
    VersionOverloaded,
    VersionReferenceConflict,
    WarmUpFailed,
)
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, LoadPolicy, RegistryAddress, VersionPolicy
from registry_serve.version import __version__

if typing.TYPE_CHECKING:
    from registry_serve.application import AppArgs, app
    from registry_serve.deployment import deployment_from_handler, deployment_from_model_name
    from registry_serve.handlers import ModelHandlerInterface
    from registry_serve.handlers.registration import log_handler
    from registry_serve.persistent import PersistentClient, Response, client, serve
    from registry_serve.rollout import deploy
    from registry_serve.signature import Compatibility

__all__ = [
    "AppArgs",
    "BatchPolicy",
    "BodyTimeout",
    "BodyTooLarge",
    "CachePolicy",
    "CodeConflict",
    "Compatibility",
    "ConfigurationError",
    "DeploymentEnded",
    "DeploymentFileInvalid",
    "DeploymentNotFound",
    "DeploymentUnavailable",
    "DiskFull",
    "DownloadFailed",
    "Draining",
    "EndpointFailed",
    "EnvironmentConflict",
    "ForeignOrigin",
    "GenerationUnsupported",
    "HandlerInvalid",
    "InvalidRequest",
    "Limits",
    "LoadFailed",
    "LoadPolicy",
    "MalformedJSON",
    "ModelHandlerInterface",
    "ModelNotFound",
    "ModelNotServed",
    "ModelProcessDied",
    "PersistentClient",
    "PredictionFailed",
    "PredictionTimeout",
    "RateLimited",
    "RegistryAddress",
    "RegistryServeError",
    "RegistryUnavailable",
    "ReplicaStuck",
    "ResourcesMissing",
    "Response",
    "SignatureConflict",
    "SignatureMissing",
    "SignatureUnsupported",
    "StreamingUnsupported",
    "TooManyRequests",
    "TooManyTokens",
    "Unauthenticated",
    "UnknownArgument",
    "VersionForbidden",
    "VersionLoading",
    "VersionNotFound",
    "VersionOverloaded",
    "VersionPolicy",
    "VersionReferenceConflict",
    "WarmUpFailed",
    "__version__",
    "app",
    "client",
    "deploy",
    "deployment_from_handler",
    "deployment_from_model_name",
    "log_handler",
    "serve",
]

#: Imported when they are asked for: Ray and MLflow take seconds, and pytest imports this package for its plugin.
_LATE = {
    "AppArgs": "application",
    "Compatibility": "signature",
    "ModelHandlerInterface": "handlers",
    "PersistentClient": "persistent",
    "Response": "persistent",
    "app": "application",
    "client": "persistent",
    "deploy": "rollout",
    "deployment_from_handler": "deployment",
    "deployment_from_model_name": "deployment",
    "log_handler": "handlers.registration",
    "serve": "persistent",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
