"""Every error that leaves this package, each with its HTTP status, a stable code and a title.

    RegistryServeError
    ├── ConfigurationError                the deployment cannot be built as asked (never an answer to a request)
    │   ├── SignatureMissing              the model version was logged without a signature
    │   ├── SignatureUnsupported          the signature has a type that has no JSON form
    │   ├── HandlerInvalid                a model handler is missing, or is none
    │   ├── DownloadFailed                the files of a model cannot be downloaded
    │   ├── DeploymentFileInvalid         a deployment file has a mistake, with its line
    │   ├── DeploymentNotFound            no deployment has that name
    │   │   └── DeploymentEnded           it is not there any more, although it was not ended
    │   ├── UnknownArgument               a keyword that nobody knows
    │   └── ResourcesMissing              the cluster has not the GPUs that are asked for
    ├── EndpointFailed                    a deployment asked over HTTP did not answer (told by the command line)
    ├── WarmUpFailed                      the default version cannot answer its own input example
    ├── ReplicaStuck                      a model has not come back for too long (told to Ray, not to clients)
    ├── MalformedJSON              400    the body is not JSON
    ├── VersionReferenceConflict   400    two different versions were asked for at once
    ├── TooManyTokens              400    prompt and answer together are too long to be generated here
    ├── Unauthenticated            401    API key missing or wrong
    ├── VersionForbidden           403    the version policy does not allow this version
    ├── ForeignOrigin              403    a browser page of another site sent the request
    ├── ModelNotFound              404
    ├── VersionNotFound            404
    ├── ModelNotServed             404    the deployment serves another model
    ├── BodyTimeout                408    the body does not arrive in time
    ├── SignatureConflict          409    the version's signature breaks the contract
    ├── BodyTooLarge               413
    ├── InvalidRequest             422    the body does not fit the schema
    ├── PredictionFailed           500    the model raised, or its answer has no JSON form
    ├── StreamingUnsupported       501    the model answers in one piece only
    ├── GenerationUnsupported      501    the model is not served as a language model
    ├── LoadFailed                 500    the version cannot be loaded
    │   ├── DiskFull               507    there is no room for its files       (Retry-After)
    │   ├── CodeConflict           500    it brings Python modules that clash with another version's
    │   └── EnvironmentConflict    500    it asks for other packages than are installed
    ├── TooManyRequests            429    too many requests are waiting        (Retry-After)
    │   └── VersionOverloaded      429    ... for one version                  (Retry-After)
    ├── RateLimited                429    the deployment file allows fewer     (Retry-After)
    ├── RegistryUnavailable        503    the registry does not answer         (Retry-After)
    ├── VersionLoading             503    loading outlasts the caller's wait   (Retry-After)
    ├── ModelProcessDied           503    the model's own process has ended    (Retry-After)
    ├── DeploymentUnavailable      503    no replica of a persistent deployment answers (Retry-After)
    ├── Draining                   503    this replica is shutting down        (Retry-After)
    └── PredictionTimeout          504

An error is built from plain positional arguments that it keeps in ``args``, so that it survives pickling on its
way through a ``DeploymentHandle``. ``str(error)`` is the sentence a client may read: it never holds the
caller's data, a path on the server, or a stack trace.
"""

from registry_serve.errors.deployments import (
    ConfigurationError,
    DeploymentEnded,
    DeploymentFileInvalid,
    DeploymentNotFound,
    DownloadFailed,
    EndpointFailed,
    HandlerInvalid,
    ReplicaStuck,
    ResourcesMissing,
    SignatureMissing,
    SignatureUnsupported,
    UnknownArgument,
    WarmUpFailed,
)
from registry_serve.errors.requests import (
    BodyTimeout,
    BodyTooLarge,
    ForeignOrigin,
    InvalidRequest,
    MalformedJSON,
    ModelNotFound,
    ModelNotServed,
    RateLimited,
    SignatureConflict,
    TooManyRequests,
    TooManyTokens,
    Unauthenticated,
    VersionForbidden,
    VersionNotFound,
    VersionOverloaded,
    VersionReferenceConflict,
)
from registry_serve.errors.root import (
    RegistryServeError,
)
from registry_serve.errors.serving import (
    CodeConflict,
    DeploymentUnavailable,
    DiskFull,
    Draining,
    EnvironmentConflict,
    GenerationUnsupported,
    LoadFailed,
    ModelProcessDied,
    PredictionFailed,
    PredictionTimeout,
    RegistryUnavailable,
    StreamingUnsupported,
    VersionLoading,
)

__all__ = [
    "BodyTimeout",
    "BodyTooLarge",
    "CodeConflict",
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
    "LoadFailed",
    "MalformedJSON",
    "ModelNotFound",
    "ModelNotServed",
    "ModelProcessDied",
    "PredictionFailed",
    "PredictionTimeout",
    "RateLimited",
    "RegistryServeError",
    "RegistryUnavailable",
    "ReplicaStuck",
    "ResourcesMissing",
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
    "VersionReferenceConflict",
    "WarmUpFailed",
]
