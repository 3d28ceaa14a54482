"""The Ray Serve class that all deployments are made of, whatever kind of model they serve."""

import asyncio
import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from pydantic_core import from_json
from ray import serve
from ray.serve import Deployment
from starlette.types import ASGIApp

from registry_serve.dataplane import DataPlane
from registry_serve.generation import Chunk
from registry_serve.leases import VersionState
from registry_serve.logs import log_where_serve_does
from registry_serve.metrics import Metrics
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.protocols.gate import ApiKeys
from registry_serve.rates import RateLimit
from registry_serve.registry import VersionKey
from registry_serve.resources import Resources, require_where_ray_runs, use_assigned_device

logger = logging.getLogger(__name__)

#: Requests that Ray lets into a replica beyond our own limit, so that ours is the one that answers.
_HEADROOM = 100
#: How long a thread that computes in Python may keep the event loop waiting, once it wants to go on. A request needs
#: Python several times on its way; with Python's own 5 ms, a version that loads would slow down all others.
_SWITCH_INTERVAL_S = 0.001

#: How often Serve looks whether replicas of several processes, which end themselves, are still there.
_SEVERAL_CHECKED_EACH_S = 1.0

OnChange = Callable[[VersionKey, VersionState], None]


@dataclass(frozen=True)
class Replica:
    """What every replica needs to know, whatever it serves. It travels inside the deployment class.

    Attributes:
        name: of the deployment.
        title: of the API's documentation.
        cache: how many versions stay loaded.
        batching: when requests are merged.
        limits: what one request may cost.
        rate_limit: predictions that each replica lets in per second; None for any number.
        resources: what each replica takes of the cluster.
        api_key_file: path on every node of a file with keys; None leaves the endpoint open.
    """

    name: str
    title: str
    cache: CachePolicy = field(default_factory=CachePolicy)
    batching: BatchPolicy = field(default_factory=BatchPolicy)
    limits: Limits = field(default_factory=Limits)
    rate_limit: float | None = None
    resources: Resources = field(default_factory=Resources)
    api_key_file: str | None = None

    def __post_init__(self) -> None:
        """Look at the keys and the rate once here, where somebody sees what is wrong with them."""
        if self.rate_limit is not None:
            RateLimit(self.rate_limit)
        if self.api_key_file is not None:
            object.__setattr__(self, "api_key_file", str(Path(self.api_key_file).absolute()))
            self.keys()

    def keys(self) -> ApiKeys | None:
        """Read the keys.

        Raises:
            ConfigurationError: the file cannot be read, or holds no key.
        """
        return None if self.api_key_file is None else ApiKeys.read(self.api_key_file)


class Served(Protocol):
    """What a deployment serves. It travels inside the deployment class, and is asked in each replica."""

    @property
    def replica(self) -> Replica:
        """What is the same for all kinds of models."""

    def plane(self, on_change: OnChange) -> DataPlane:
        """Put the data plane together. Blocks."""

    def web(self, plane: DataPlane) -> ASGIApp:
        """Return the web application over it."""


def deployment_name(model_name: str) -> str:
    """Return the name of a model's deployment: the model's, but for characters that Ray's own addresses use."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", model_name)


def _together(resources: Resources) -> dict[str, Any]:
    """Return the options that replicas of several processes need: when one process ends, so does the replica."""
    return (
        {**resources.placement(), "health_check_period_s": _SEVERAL_CHECKED_EACH_S} if resources.processes > 1 else {}
    )


def deployment_of(served: Served, *, web: bool = True) -> Deployment:
    """Make the deployment class.

    Args:
        served: what it serves.
        web: whether it answers HTTP requests; else only handles reach it, as it must be where an application has
            several: Serve lets one of them answer.

    Raises:
        ResourcesMissing: Ray runs, and can never give its replicas what they take.
    """
    replica = served.replica
    require_where_ray_runs(replica.resources)

    class ServedModel:
        """One replica."""

        async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
            log_where_serve_does()
            self._advertising: set[asyncio.Task[Any]] = set()
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
            use_assigned_device()
            self._metrics = Metrics()
            self._plane = served.plane(self._noticed)
            context = serve.get_replica_context()
            self._plane.place = {
                "id": context.replica_id.unique_id,
                "node": ray.get_runtime_context().get_node_id(),
            }
            self._publishing = asyncio.get_running_loop().create_task(self._metrics.publish(self._plane))
            await self._plane.start()

        async def __serve_build_asgi_app__(self) -> ASGIApp:
            return served.web(self._plane)

        async def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> Any:
            """Answer rows and params from another deployment; ``multiplexed_model_id`` names the version."""
            reference = serve.get_multiplexed_model_id()
            return from_json(await self._plane.call(reference, rows, params))

        async def generate(
            self, rows: Any, params: Mapping[str, Any] | None = None
        ) -> AsyncGenerator[list[Chunk], None]:
            """Answer one row from another deployment piece by piece: at each step the pieces that have come."""
            async for chunks in self._plane.call_generate(serve.get_multiplexed_model_id(), rows, params):
                yield chunks

        async def describe(self) -> Mapping[str, Any]:
            """Return what ``GET /model`` returns."""
            return await self._plane.describe()

        async def status(self) -> Mapping[str, Any]:
            """Return what this replica does, and in which process."""
            return {**self._plane.status(), "process": os.getpid()}

        @serve.multiplexed(max_num_models_per_replica=replica.cache.max_models)  # type: ignore[untyped-decorator]
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

    decorated = serve.deployment(
        name=deployment_name(replica.name),
        max_ongoing_requests=replica.limits.max_pending_requests + _HEADROOM,
        ray_actor_options=replica.resources.actor_options(),
        **_together(replica.resources),
    )
    return decorated(serve.ingress()(ServedModel) if web else ServedModel)
