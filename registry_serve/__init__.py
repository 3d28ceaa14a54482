"""Take a model in an MLflow registry online with one line, on Ray Serve.

from ray import serve
from registry_serve import deployment_from_model_name

serve.run(deployment_from_model_name("translation_model").bind())
"""

from registry_serve.application import AppArgs, app
from registry_serve.deployment import deployment_from_model_name
from registry_serve.errors import (
    BodyTooLarge,
    CodeConflict,
    ConfigurationError,
    Draining,
    ForeignOrigin,
    InvalidRequest,
    LoadFailed,
    MalformedJSON,
    ModelNotFound,
    PredictionFailed,
    PredictionTimeout,
    RegistryServeError,
    RegistryUnavailable,
    SignatureConflict,
    SignatureMissing,
    SignatureUnsupported,
    TooManyRequests,
    Unauthenticated,
    VersionForbidden,
    VersionLoading,
    VersionNotFound,
    VersionReferenceConflict,
    WarmUpFailed,
)
from registry_serve.policies import CachePolicy, Limits, RegistryAddress, VersionPolicy
from registry_serve.signature import Compatibility
from registry_serve.version import __version__

__all__ = [
    "AppArgs",
    "BodyTooLarge",
    "CachePolicy",
    "CodeConflict",
    "Compatibility",
    "ConfigurationError",
    "Draining",
    "ForeignOrigin",
    "InvalidRequest",
    "Limits",
    "LoadFailed",
    "MalformedJSON",
    "ModelNotFound",
    "PredictionFailed",
    "PredictionTimeout",
    "RegistryAddress",
    "RegistryServeError",
    "RegistryUnavailable",
    "SignatureConflict",
    "SignatureMissing",
    "SignatureUnsupported",
    "TooManyRequests",
    "Unauthenticated",
    "VersionForbidden",
    "VersionLoading",
    "VersionNotFound",
    "VersionPolicy",
    "VersionReferenceConflict",
    "WarmUpFailed",
    "__version__",
    "app",
    "deployment_from_model_name",
]
