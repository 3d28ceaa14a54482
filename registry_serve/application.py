"""``serve run registry_serve:app``: arguments in, a Ray Serve application out."""

# No `from __future__ import annotations` here: Ray looks at the builder's annotation to know what to make of the
# arguments, and would hand a plain dict to a builder whose annotation is a string.

import json
import logging
import os
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ray.serve import Application, Deployment

from registry_serve.deployment import deployment_from_model_name
from registry_serve.errors import ConfigurationError
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, VersionPolicy
from registry_serve.registry import RegisteredModelSummary, Registry, impatient_http, registry_address
from registry_serve.signature import Compatibility

logger = logging.getLogger(__name__)

#: The environment variable that names the model where the arguments do not.
MODEL_VARIABLE = "REGISTRY_SERVE_MODEL"
#: The tag of a registered model that is served where neither does.
DEFAULT_TAG = "registry_serve.default"
#: The alias that is served where no version is named.
DEFAULT_ALIAS = "champion"


def _from_json(value: Any) -> Any:
    """Decode what the command line can only pass as text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        return json.loads(value)
    return value


def _object(kind: type[Any]) -> BeforeValidator:
    """Take a policy as an object, or as JSON text; say which of its members do not exist."""

    def decoded(value: Any) -> Any:
        value = _from_json(value)
        unknown = value.keys() - {field.name for field in fields(kind)} if isinstance(value, dict) else set()
        if unknown:
            known = ", ".join(field.name for field in fields(kind))
            raise ValueError(f"no such setting: {', '.join(sorted(unknown))}; there are {known}")
        return value

    return BeforeValidator(decoded)


def _batching(value: Any) -> Any:
    value = _from_json(value)
    return {"mode": value} if isinstance(value, str) else value


class AppArgs(BaseModel):
    """Arguments of ``app``, from ``serve run registry_serve:app NAME=VALUE ...`` or a config file's ``args``.

    They are those of ``deployment_from_model_name``; every value may be text. ``cache``, ``batching`` and ``limits``
    are objects, as JSON where they are text: ``limits='{"request_timeout_s": 5}'``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = Field(None, description="Name of the registered model.")
    version: str | int | None = Field(
        None,
        description="Default version: a number, 'latest' or an alias; else 'champion', else the latest.",
    )
    tracking_uri: str | None = Field(None, description="MLflow's tracking URI; MLFLOW_TRACKING_URI if not given.")
    registry_uri: str | None = Field(None, description="MLflow's registry URI, where it is another one.")
    versions: Annotated[str | int | list[str | int], BeforeValidator(_from_json)] = Field(
        "all", description="Versions that a request may name: 'all', 'aliased', or numbers such as '1,2'."
    )
    compatibility: Compatibility = Field(Compatibility.EXACT, description="'exact' or 'backward'.")
    max_models_per_replica: int | None = Field(None, description="Versions that stay loaded in each replica; 2.")
    cache: Annotated[CachePolicy | None, _object(CachePolicy)] = Field(
        None, description="max_models, max_bytes, idle_ttl_s and more, as an object."
    )
    batching: Annotated[BatchPolicy, _object(BatchPolicy), BeforeValidator(_batching)] = Field(
        default_factory=BatchPolicy, description="'auto', 'on' or 'off'; or an object with mode, max_batch_size, ..."
    )
    environment: Literal["warn", "refuse", "isolate"] = Field(
        "warn", description="For versions logged with other packages: 'warn', 'refuse' or 'isolate'."
    )
    isolation: bool = Field(True, description="Give versions whose Python modules clash a process of their own.")
    engine: Literal["auto", "continuous", "static"] | None = Field(
        None, description="For language models of MLflow's transformers flavour: 'auto', 'continuous' or 'static'."
    )
    limits: Annotated[Limits, _object(Limits)] = Field(
        default_factory=Limits, description="max_body_bytes, request_timeout_s, max_pending_requests and more."
    )
    rate_limit: float | None = Field(None, gt=0, description="Predictions per second that each replica lets in.")
    gpus: float = Field(0.0, ge=0, description="GPUs of each replica; a fraction shares one.")
    gpu_type: str | None = Field(None, description="Which GPUs, such as A100 or a100_40gb.")
    title: str | None = Field(None, description="Title of the API's documentation.")
    api_key_file: str | None = Field(None, description="File with one API key per line, on every node.")


def app(args: AppArgs) -> Application:
    """Build the application that serves one registered model.

    Raises:
        ConfigurationError: no model is named and none can be chosen.
        RegistryServeError: as ``deployment_from_model_name``.
    """
    return deployment_of(args).bind()


def deployment_of(args: AppArgs) -> Deployment:
    """Make the deployment of that application, for those who set options of Ray's on it.

    Raises:
        RegistryServeError: as ``app``.
    """
    address = registry_address(args.tracking_uri, args.registry_uri)
    with impatient_http(address):
        registry = Registry(address)
        model = args.model or os.environ.get(MODEL_VARIABLE) or choose_model(registry.models())
        version = args.version
        if version is None:
            version = choose_version(registry, model, VersionPolicy.of(args.versions))
    logger.info("Serving %s, version %s by default.", model, version)
    return deployment_from_model_name(
        model,
        version,
        tracking_uri=address.tracking_uri,
        registry_uri=address.registry_uri,
        versions=args.versions,
        compatibility=args.compatibility,
        max_models_per_replica=args.max_models_per_replica,
        cache=args.cache,
        batching=args.batching,
        environment=args.environment,
        isolation=args.isolation,
        engine=args.engine,
        limits=args.limits,
        rate_limit=args.rate_limit,
        gpus=args.gpus,
        gpu_type=args.gpu_type,
        title=args.title,
        api_key_file=args.api_key_file,
    )


def choose_model(models: list[RegisteredModelSummary]) -> str:
    """Return the only registered model, else the one tagged as the default.

    Raises:
        ConfigurationError: neither exists; the message lists the models.
    """
    if len(models) == 1:
        return models[0].name
    tagged = [model.name for model in models if model.tags.get(DEFAULT_TAG, "").lower() == "true"]
    if len(tagged) == 1:
        return tagged[0]
    if not models:
        raise ConfigurationError("The registry holds no registered model. Register one, or check MLFLOW_TRACKING_URI.")
    names = ", ".join(sorted(model.name for model in models))
    raise ConfigurationError(
        f"Which model? Name one with model=NAME or {MODEL_VARIABLE}, or tag one {DEFAULT_TAG}=true. There are: {names}."
    )


def choose_version(registry: Registry, model: str, policy: VersionPolicy) -> str:
    """Return the version to serve by default: the one with the alias ``champion``, else the latest that is allowed.

    Raises:
        ModelNotFound: there is no such model.
        VersionNotFound: it has no version that is ready.
    """
    for summary in registry.summaries(model):
        if DEFAULT_ALIAS in summary.aliases:
            return summary.number
    return registry.latest(model, policy.allows)
