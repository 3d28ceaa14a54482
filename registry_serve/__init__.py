"""Take a model in an MLflow registry online with one line, on Ray Serve.

from ray import serve
from registry_serve import deployment_from_model_name

serve.run(deployment_from_model_name("translation_model").bind())
"""

from registry_serve.application import AppArgs, app
from registry_serve.deployment import deployment_from_model_name
from registry_serve.errors import (
    BodyTimeout,
    BodyTooLarge,
    CodeConflict,
    ConfigurationError,
    DiskFull,
    Draining,
    EnvironmentConflict,
    ForeignOrigin,
    InvalidRequest,
    LoadFailed,
    MalformedJSON,
    ModelNotFound,
    ModelProcessDied,
    PredictionFailed,
    PredictionTimeout,
    RegistryServeError,
    RegistryUnavailable,
    ReplicaStuck,
    SignatureConflict,
    SignatureMissing,
    SignatureUnsupported,
    TooManyRequests,
    Unauthenticated,
    VersionForbidden,
    VersionLoading,
    VersionNotFound,
    VersionOverloaded,
    VersionReferenceConflict,
    WarmUpFailed,
)
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, LoadPolicy, RegistryAddress, VersionPolicy
from registry_serve.signature import Compatibility
from registry_serve.version import __version__

__all__ = [
    "AppArgs",
    "BatchPolicy",
    "BodyTimeout",
    "BodyTooLarge",
    "CachePolicy",
    "CodeConflict",
    "Compatibility",
    "ConfigurationError",
    "DiskFull",
    "Draining",
    "EnvironmentConflict",
    "ForeignOrigin",
    "InvalidRequest",
    "Limits",
    "LoadFailed",
    "LoadPolicy",
    "MalformedJSON",
    "ModelNotFound",
    "ModelProcessDied",
    "PredictionFailed",
    "PredictionTimeout",
    "RegistryAddress",
    "RegistryServeError",
    "RegistryUnavailable",
    "ReplicaStuck",
    "SignatureConflict",
    "SignatureMissing",
    "SignatureUnsupported",
    "TooManyRequests",
    "Unauthenticated",
    "VersionForbidden",
    "VersionLoading",
    "VersionNotFound",
    "VersionOverloaded",
    "VersionPolicy",
    "VersionReferenceConflict",
    "WarmUpFailed",
    "__version__",
    "app",
    "deployment_from_model_name",
]
