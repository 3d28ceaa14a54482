"""A registered model -> a deployment that serves all its compatible versions."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ray.serve import Deployment
from starlette.types import ASGIApp

from registry_serve.contract import Contract
from registry_serve.dataplane import DataPlane
from registry_serve.deployment.replica import OnChange, Replica, deployment_of
from registry_serve.errors import ConfigurationError, RegistryUnavailable
from registry_serve.models import LoadedModel
from registry_serve.models.attempts import Attempts
from registry_serve.models.held import load_held
from registry_serve.models.isolated import load_isolated
from registry_serve.models.loading import Loader
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, LoadPolicy, RegistryAddress, VersionPolicy
from registry_serve.protocols.native import native_app
from registry_serve.registry import (
    ModelVersion,
    Registry,
    Resolver,
    impatient_http,
    make_http_impatient,
    parse_reference,
    registry_address,
)
from registry_serve.resources import Resources
from registry_serve.signature import Compatibility

logger = logging.getLogger(__name__)


def deployment_from_model_name(
    model_name: str,
    default_version: str | int = "1",
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    versions: str | int | Collection[str | int] = "all",
    compatibility: str | Compatibility = Compatibility.EXACT,
    max_models_per_replica: int | None = None,
    cache: CachePolicy | None = None,
    batching: str | BatchPolicy = "auto",
    environment: Literal["warn", "refuse", "isolate"] = "warn",
    isolation: bool = True,
    engine: Literal["auto", "continuous", "static"] | None = None,
    limits: Limits | None = None,
    rate_limit: float | None = None,
    gpus: float = 0.0,
    gpu_type: str | None = None,
    title: str | None = None,
    api_key_file: str | Path | None = None,
) -> Deployment:
    """Make a deployment that serves every compatible version of a registered model.

        serve.run(deployment_from_model_name("translation_model").bind())

    The API comes from the signature of the default version, read now; the registry is asked for nothing but metadata.
    The result is an ordinary deployment, named after the model: ``.options(num_replicas=2, ...)`` works on it.

    Args:
        model_name: name of the registered model.
        default_version: what answers when a request names no version: a number, ``latest`` or an alias. It is resolved
            now, once: moving an alias later does not change the default.
        tracking_uri: MLflow's tracking URI; the current one if not given.
        registry_uri: MLflow's registry URI, where it is another one.
        versions: which versions a request may name: ``"all"``, ``"aliased"`` or version numbers.
        compatibility: ``"exact"`` or ``"backward"``: how alike another version's signature must be.
        max_models_per_replica: versions that stay loaded in each replica, the default included; 2 if not given. Short
            for ``cache=CachePolicy(max_models=...)``.
        cache: how many versions stay loaded, how many bytes, and for how long.
        batching: when the rows of several requests go to the model in one call: ``"auto"``, ``"on"`` or ``"off"``, or
            a policy that also says how many.
        environment: what happens to a version that was logged with other packages than are installed: ``"warn"``
            loads it, ``"refuse"`` does not, ``"isolate"`` installs its packages for a process of its own.
        isolation: versions whose Python modules clash with another's get a process of their own; else they are
            refused.
        engine: what generates for language models of MLflow's transformers flavour, many requests at a time:
            ``"auto"``, ``"continuous"`` or ``"static"``; they are called as all other models if not given.
        limits: what one request may cost.
        rate_limit: predictions per second that each replica lets in; any number if not given.
        gpus: GPUs of each replica, which the models are loaded on; a fraction shares one.
        gpu_type: which, such as ``"A100"`` or ``"a100_40gb"``; any if not given.
        title: of the API's documentation; the model's name if not given.
        api_key_file: file with one API key per line, on every node; requests then need one of them.

    Raises:
        ModelNotFound: the registry has no such model.
        VersionNotFound: it has no such version.
        SignatureMissing: the version was logged without a signature.
        SignatureUnsupported: a type of the signature has no JSON form.
        RegistryUnavailable: the registry does not answer.
        ResourcesMissing: Ray runs, and has no such GPUs.
        ConfigurationError: an argument makes no sense.
    """
    try:
        kind = Compatibility(compatibility)
    except ValueError:
        raise ConfigurationError(f"compatibility must be 'exact' or 'backward', not {compatibility!r}.") from None
    address, policy = registry_address(tracking_uri, registry_uri), VersionPolicy.of(versions)
    replica = Replica(
        model_name,
        title or model_name,
        cache=cache_policy(max_models_per_replica, cache),
        batching=batching if isinstance(batching, BatchPolicy) else BatchPolicy(mode=batching),  # type: ignore[arg-type]
        limits=limits or Limits(),
        rate_limit=rate_limit,
        resources=Resources(gpus=gpus, gpu_type=gpu_type),
        api_key_file=None if api_key_file is None else str(api_key_file),
    )
    contract = Contract(_default(address, model_name, str(default_version), policy), kind)
    return deployment_of(
        RegisteredModel(contract, address, policy, LoadPolicy(environment, isolation, engine), replica)
    )


def cache_policy(max_models: int | None, cache: CachePolicy | None) -> CachePolicy:
    """Return the policy that ``max_models_per_replica`` and ``cache`` mean.

    Raises:
        ConfigurationError: both are given.
    """
    if max_models is None:
        return cache or CachePolicy()
    if cache is not None:
        raise ConfigurationError(
            "max_models_per_replica is short for cache=CachePolicy(max_models=...). Give one of them."
        )
    return CachePolicy(max_models=max_models)


def _default(address: RegistryAddress, model_name: str, version: str, policy: VersionPolicy) -> ModelVersion:
    reference = parse_reference(version)
    if reference is None:
        raise ConfigurationError(f"{version!r} is no version: use a number, 'latest' or an alias such as '@champion'.")
    with impatient_http(address):
        registry = Registry(address)
        return registry.version(model_name, registry.number_of(model_name, reference, policy=policy))


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model as a deployment serves it.

    Attributes:
        contract: the default version and what others must have in common with it.
        address: the registry, absolute.
        versions: which versions may be asked for.
        loading: what happens to those that do not fit into the replica's process.
        replica: what is the same for all kinds of models.
    """

    contract: Contract
    address: RegistryAddress
    versions: VersionPolicy
    loading: LoadPolicy
    replica: Replica

    def plane(self, on_change: OnChange) -> DataPlane:
        """Look whether the default version is what it was, and put the data plane together."""
        make_http_impatient(self.address)
        registry = Registry(self.address)
        default = self.contract.default
        _confirm_default(registry, default)
        loader = Loader(self.loading, load_isolated, Attempts(registry.artifacts.root / ".loading"), default.key)

        def load(version: ModelVersion) -> LoadedModel:
            return load_held(partial(registry.download, version), partial(loader.load, version))

        return DataPlane(
            self.contract,
            Resolver(registry, default.model, default, self.versions, self.address),
            load,
            cache=self.replica.cache,
            batching=self.replica.batching,
            limits=self.replica.limits,
            rate_limit=self.replica.rate_limit,
            environment=loader.describe,
            on_change=on_change,
            generates=lambda version: self.loading.engine is not None and version.card.generates,
        )

    def web(self, plane: DataPlane) -> ASGIApp:
        """Return the native front."""
        replica = self.replica
        return native_app(plane, replica.title, replica.keys(), behind_serve=True)


def _confirm_default(registry: Registry, default: ModelVersion) -> None:
    """Make sure that the default version still is the model whose signature this class promises.

    Raises:
        ConfigurationError: it was replaced since the class was built.
    """
    try:
        current = registry.version(default.model, default.number)
    except RegistryUnavailable:
        logger.warning("The registry does not answer; version %s is taken to be unchanged.", default.number)
        return
    if current.key != default.key:
        raise ConfigurationError(
            f"Version {default.number} of {default.model!r} is not the model any more that this deployment was built "
            "for: it was deleted and made again, or its signature was changed. Deploy again."
        )
