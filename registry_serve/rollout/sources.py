"""Which version of which registry a deployment file means by a registered model."""

from __future__ import annotations

from registry_serve.application import choose_version
from registry_serve.deployment_file import DeploymentFile
from registry_serve.errors import ConfigurationError
from registry_serve.policies import VersionPolicy
from registry_serve.registry import Registry, impatient_http, parse_reference, registry_address, require_database
from registry_serve.rollout.records import Source
from registry_serve.rollout.variables import variables


def source_of(file: DeploymentFile) -> Source | None:
    """Ask the registry which version is meant.

    Raises:
        RegistryServeError: there is no such model, or the registry does not answer.
    """
    model = file.model
    if model is None or model.registered_model is None:
        return None
    given = variables(file)
    address = registry_address(given.get("MLFLOW_TRACKING_URI"), given.get("MLFLOW_REGISTRY_URI"))
    require_database(address, "MLFLOW_TRACKING_URI, here or under env_variables")
    with impatient_http(address):
        registry = Registry(address)
        if model.version is None:
            number = choose_version(registry, model.registered_model, VersionPolicy())
        else:
            number = _number(registry, model.registered_model, model.version)
    return Source(version=number, tracking_uri=address.tracking_uri, registry_uri=address.registry_uri)


def _number(registry: Registry, model: str, version: str) -> str:
    reference = parse_reference(version)
    if reference is None:
        raise ConfigurationError(f"{version!r} is no version: use a number, 'latest' or an alias such as '@champion'.")
    return registry.number_of(model, reference, policy=VersionPolicy())
