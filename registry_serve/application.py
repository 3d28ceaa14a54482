"""``serve run registry_serve:app``: arguments in, a Ray Serve application out."""

# No `from __future__ import annotations` here: Ray looks at the builder's annotation to know what to make of the
# arguments, and would hand a plain dict to a builder whose annotation is a string.

import json
import logging
import os
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ray.serve import Application

from registry_serve.deployment import deployment_from_model_name
from registry_serve.errors import ConfigurationError
from registry_serve.policies import Limits, VersionPolicy
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


def _limits(value: Any) -> Any:
    value = _from_json(value)
    unknown = value.keys() - {field.name for field in fields(Limits)} if isinstance(value, dict) else set()
    if unknown:
        raise ValueError(f"no such limit: {', '.join(sorted(unknown))}")
    return value


class AppArgs(BaseModel):
    """Arguments of ``app``, from ``serve run registry_serve:app NAME=VALUE ...`` or a config file's ``args``.

    They are those of ``deployment_from_model_name``; every value may be text. ``limits`` is an object, as JSON where
    it is text: ``limits='{"request_timeout_s": 5}'``.
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
    max_models_per_replica: int = Field(2, description="Versions that stay loaded in each replica.")
    limits: Annotated[Limits, BeforeValidator(_limits)] = Field(
        default_factory=Limits, description="max_body_bytes, request_timeout_s, max_pending_requests."
    )
    title: str | None = Field(None, description="Title of the API's documentation.")
    api_key_file: str | None = Field(None, description="File with one API key per line, on every node.")


def app(args: AppArgs) -> Application:
    """Build the application that serves one registered model.

    Raises:
        ConfigurationError: no model is named and none can be chosen.
        RegistryServeError: as ``deployment_from_model_name``.
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
        limits=args.limits,
        title=args.title,
        api_key_file=args.api_key_file,
    ).bind()


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
