"""A registered model -> a Ray Serve deployment class. The only place that knows Serve's decorators."""

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from pydantic_core import from_json
from ray import serve
from ray.serve import Deployment
from starlette.types import ASGIApp

from registry_serve.contract import Contract
from registry_serve.dataplane import DataPlane
from registry_serve.errors import ConfigurationError, RegistryUnavailable
from registry_serve.leases import VersionState
from registry_serve.logs import log_where_serve_does
from registry_serve.metrics import Metrics
from registry_serve.models import LoadedModel
from registry_serve.models.attempts import Attempts
from registry_serve.models.held import load_held
from registry_serve.models.isolated import load_isolated
from registry_serve.models.loading import Loader
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, LoadPolicy, RegistryAddress, VersionPolicy
from registry_serve.protocols.gate import ApiKeys
from registry_serve.protocols.native import native_app
from registry_serve.registry import (
    ModelVersion,
    Registry,
    Resolver,
    VersionKey,
    impatient_http,
    make_http_impatient,
    parse_reference,
    registry_address,
)
from registry_serve.signature import Compatibility

logger = logging.getLogger(__name__)

#: Requests that Ray lets into a replica beyond our own limit, so that ours is the one that answers.
_HEADROOM = 100


#: How long a thread that computes in Python may keep the event loop waiting, once it wants to go on. A request needs
#: Python several times on its way; with Python's own 5 ms, a version that loads would slow down all others.
_SWITCH_INTERVAL_S = 0.001


@dataclass(frozen=True)
class Settings:
    """Everything a replica needs to know. It travels inside the deployment class.

    Attributes:
        contract: the default version and what others must have in common with it.
        address: the registry, absolute.
        versions: which versions may be asked for.
        cache: how many stay loaded.
        loading: what happens to those that do not fit into the replica's process.
        batching: when requests are merged.
        limits: what one request may cost.
        title: of the API's documentation.
        api_key_file: path on every node of a file with keys; None leaves the endpoint open.
    """

    contract: Contract
    address: RegistryAddress
    versions: VersionPolicy = field(default_factory=VersionPolicy)
    cache: CachePolicy = field(default_factory=CachePolicy)
    loading: LoadPolicy = field(default_factory=LoadPolicy)
    batching: BatchPolicy = field(default_factory=BatchPolicy)
    limits: Limits = field(default_factory=Limits)
    title: str = ""
    api_key_file: str | None = None


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
    limits: Limits | None = None,
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
        limits: what one request may cost.
        title: of the API's documentation; the model's name if not given.
        api_key_file: file with one API key per line, on every node; requests then need one of them.

    Raises:
        ModelNotFound: the registry has no such model.
        VersionNotFound: it has no such version.
        SignatureMissing: the version was logged without a signature.
        SignatureUnsupported: a type of the signature has no JSON form.
        RegistryUnavailable: the registry does not answer.
        ConfigurationError: an argument makes no sense.
    """
    try:
        kind = Compatibility(compatibility)
    except ValueError:
        raise ConfigurationError(f"compatibility must be 'exact' or 'backward', not {compatibility!r}.") from None
    address, policy = registry_address(tracking_uri, registry_uri), VersionPolicy.of(versions)
    settings = Settings(
        contract=Contract(_default(address, model_name, str(default_version), policy), kind),
        address=address,
        versions=policy,
        cache=cache_policy(max_models_per_replica, cache),
        loading=LoadPolicy(environment, isolation),
        batching=batching if isinstance(batching, BatchPolicy) else BatchPolicy(mode=batching),  # type: ignore[arg-type]
        limits=limits or Limits(),
        title=title or model_name,
        api_key_file=None if api_key_file is None else str(Path(api_key_file).absolute()),
    )
    if settings.api_key_file is not None:
        ApiKeys.read(settings.api_key_file)
    return _deployment(settings)


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


def deployment_name(model_name: str) -> str:
    """Return the name of a model's deployment: the model's, but for characters that Ray's own addresses use."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", model_name)


def _deployment(settings: Settings) -> Deployment:
    @serve.deployment(
        name=deployment_name(settings.contract.default.model),
        max_ongoing_requests=settings.limits.max_pending_requests + _HEADROOM,
    )
    @serve.ingress()
    class RegisteredModel:
        """One replica of a registered model."""

        async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
            log_where_serve_does()
            self._advertising: set[asyncio.Task[Any]] = set()
            self._keys = None if settings.api_key_file is None else ApiKeys.read(settings.api_key_file)
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
            self._metrics = Metrics()
            self._plane = _plane(settings, self._noticed)
            self._publishing = asyncio.get_running_loop().create_task(self._metrics.publish(self._plane))
            await self._plane.start()

        async def __serve_build_asgi_app__(self) -> ASGIApp:
            return native_app(self._plane, settings.title, self._keys, behind_serve=True)

        async def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> Any:
            """Answer rows and params from another deployment; ``multiplexed_model_id`` names the version."""
            reference = serve.get_multiplexed_model_id()
            return from_json(await self._plane.call(reference, rows, params))

        async def describe(self) -> Mapping[str, Any]:
            """Return what ``GET /model`` returns."""
            return await self._plane.describe()

        @serve.multiplexed(max_num_models_per_replica=settings.cache.max_models)  # type: ignore[untyped-decorator]
        async def _advertise(self, version: str) -> object:
            # Ray's router sends a version's requests to replicas that say they hold it, and its dashboard and metrics
            # show it. What is loaded and closed is the cache's business alone.
            return object()

        def _noticed(self, key: VersionKey, state: VersionState) -> None:
            logger.info("Version %s of %s is %s.", key.number, key.model, state.value)
            self._metrics.version_changed(key, state)
            if state is not VersionState.READY:
                return
            task = asyncio.get_running_loop().create_task(self._advertise_all())
            self._advertising.add(task)
            task.add_done_callback(self._advertising.discard)

        async def _advertise_all(self) -> None:
            # In the order of our own cache, the default last: what Ray then drops is what we have closed.
            for key in self._plane.cache.ready():
                await self._advertise(key.number)

        async def check_health(self) -> None:  # on the event loop, whose tables it reads
            """Tell Ray when a model has not come back, so that it replaces the replica."""
            self._plane.check_health()

        async def __del__(self) -> None:
            if hasattr(self, "_publishing"):
                self._publishing.cancel()
                await self._plane.aclose()

    return cast(Deployment, RegisteredModel)


def _plane(settings: Settings, on_change: Callable[[VersionKey, VersionState], None]) -> DataPlane:
    """Put a replica's parts together."""
    make_http_impatient(settings.address)
    registry = Registry(settings.address)
    default = settings.contract.default
    _confirm_default(registry, default)
    resolver = Resolver(registry, default.model, default, settings.versions, settings.address)

    loader = Loader(settings.loading, load_isolated, Attempts(registry.artifacts.root / ".loading"), default.key)

    def load(version: ModelVersion) -> LoadedModel:
        return load_held(partial(registry.download, version), partial(loader.load, version))

    return DataPlane(
        settings.contract,
        resolver,
        load,
        cache=settings.cache,
        batching=settings.batching,
        limits=settings.limits,
        environment=loader.describe,
        on_change=on_change,
    )


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
