"""What each replica takes of the cluster: whether the cluster can give it, and what the replica then sees."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from registry_serve.deployment_file import accelerator_type
from registry_serve.errors import ConfigurationError, ResourcesMissing

#: A node that has GPUs has as many units of ``GPU``, and a little of this with the name of their type.
_TYPE = "accelerator_type:"
#: How much of it Ray takes for each actor that asks for the type.
_OF_TYPE = 0.001
#: Ray counts resources in units of so small a part.
_PARTS = 10_000
_MLFLOW_DEVICE = "MLFLOW_DEFAULT_PREDICTION_DEVICE"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What one replica takes.

    Attributes:
        cpus: of Ray's accounts; None for Serve's default.
        gpus: a fraction shares one GPU with other replicas; above 1, whole ones.
        gpu_type: as Ray or as a deployment file names it, such as ``A100`` or ``a100_40gb``; None for any.
        processes: that it consists of, on one node; each has an equal part of all this.
    """

    cpus: float | None = None
    gpus: float = 0.0
    gpu_type: str | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.cpus is not None and not 0 <= self.cpus < math.inf:
            raise ConfigurationError(f"cpus must be 0 or more, not {self.cpus:g}.")
        if not 0 <= self.gpus < math.inf:
            raise ConfigurationError(f"gpus must be 0 or more, not {self.gpus:g}.")
        if self.gpus > 1 and self.gpus % 1:
            raise ConfigurationError(f"gpus above 1 must be a whole number, not {self.gpus:g}.")
        if 0 < self.gpus < 1 / _PARTS:
            raise ConfigurationError(f"gpus must be 0, or at least {1 / _PARTS:g}.")
        if not isinstance(self.processes, int) or self.processes < 1:
            raise ConfigurationError(f"tensor_parallel must be a whole number above 0, not {self.processes!r}.")
        if self.processes > 1 and self.gpus not in (0, self.processes):
            raise ConfigurationError(
                f"A replica of {self.processes} processes (tensor_parallel) computes on {self.processes} GPUs, one for "
                f"each, or on none: gpus must be {self.processes} or 0, not {self.gpus:g}."
            )
        if self.processes > 1 and not self.gpus and self.cpus is not None and self.cpus / self.processes < 1 / _PARTS:
            raise ConfigurationError(  # Ray reserves no place for a process that takes nothing
                f"Each process of a replica of {self.processes} (tensor_parallel) takes a part of a CPU where there is "
                f"no GPU: cpus must be above 0, or not set, not {self.cpus:g}."
            )

    def actor_options(self) -> dict[str, Any]:
        """Return the ``ray_actor_options`` of a deployment: what its replicas take, or the first process of each."""
        options: dict[str, Any] = {} if self.cpus is None else {"num_cpus": self.cpus / self.processes}
        if self.gpus:
            options["num_gpus"] = self.gpus / self.processes
            if self.accelerator is not None:
                options["accelerator_type"] = self.accelerator
        return options

    def placement(self) -> dict[str, Any]:
        """Return the options of a deployment that reserve what the processes of a replica take, on one node."""
        if self.processes == 1:
            return {}
        bundle = {"CPU": 1.0 if self.cpus is None else self.cpus / self.processes}
        if self.gpus:
            bundle["GPU"] = self.gpus / self.processes
            if self.accelerator is not None:
                bundle[_TYPE + self.accelerator] = _OF_TYPE
        return {"placement_group_bundles": [bundle] * self.processes, "placement_group_strategy": "STRICT_PACK"}

    @property
    def accelerator(self) -> str | None:
        """Ray's name of the GPU's type."""
        if self.gpu_type is None:
            return None
        try:
            return accelerator_type(self.gpu_type)
        except ConfigurationError:  # a card that only Ray knows, under the name that it gives it
            return self.gpu_type


def require(resources: Resources, replicas: int = 1) -> None:
    """Make sure that the cluster can hold so many replicas, once whatever else runs there has ended.

    Only nodes that are there count: Ray has no public way to tell what an autoscaler might add.

    Args:
        resources: of each replica.
        replicas: how many.

    Raises:
        ResourcesMissing: it has not the GPUs, or not this type, or not enough of them on one node.
    """
    if not resources.gpus:
        return
    nodes = [each["Resources"] for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]
    fits = room(nodes, resources)
    if fits < replicas:
        raise ResourcesMissing(
            f"The cluster has {_found(nodes, resources)}, room for {fits} replicas with {resources.gpus:g} each, and "
            f"you ask for {replicas}. Ask for fewer replicas or GPUs, or add a node that has them."
        )


def require_where_ray_runs(resources: Resources, replicas: int = 1) -> None:
    """Do as ``require`` does in a process that has joined a cluster; elsewhere nothing is known yet."""
    if ray.is_initialized():
        require(resources, replicas)


def room(nodes: Iterable[Mapping[str, float]], resources: Resources) -> int:
    """Return how many replicas fit on nodes with these resources. The GPUs of one replica are on one node."""
    if resources.gpus < 1:
        # 0.1 ten times, although 1 // 0.1 is 9.
        return sum(int(gpus) for gpus in _gpus(nodes, resources)) * (_PARTS // round(resources.gpus * _PARTS))
    return sum(int(gpus // resources.gpus) for gpus in _gpus(nodes, resources))


def use_assigned_device() -> str:
    """Let a replica compute where Ray's accounts have it; call this before anything imports a framework.

    Ray shows a replica the GPUs it was given, and all of them to a replica that was given none; those are hidden here,
    unless MLFLOW_DEFAULT_PREDICTION_DEVICE says where to compute. That variable is not set for replicas with a GPU:
    MLflow's flavours then take the first that they see, while none of its values suits them all ("cuda:0" for PyTorch
    is an invalid one for Transformers, and "0" the other way round).

    Returns:
        ``cuda``, ``cpu``, or what the variable says; for the log.
    """
    chosen = os.environ.get(_MLFLOW_DEVICE)
    assigned = ray.get_gpu_ids()
    if not assigned and not chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device = chosen or ("cuda" if assigned else "cpu")
    logger.info("This replica computes on %s.", device)
    return device


def _gpus(nodes: Iterable[Mapping[str, float]], resources: Resources) -> list[float]:
    kind = resources.accelerator
    fitting = [each for each in nodes if kind is None or f"{_TYPE}{kind}" in each]
    return [each["GPU"] for each in fitting if each.get("GPU")]


def _found(nodes: list[Mapping[str, float]], resources: Resources) -> str:
    gpus, kind = _gpus(nodes, resources), resources.accelerator
    of_type = "" if kind is None else f" of type {kind}"
    if gpus:
        several = f" on {len(gpus)} nodes" if len(gpus) > 1 else ""
        return f"{sum(gpus):g} GPU{'' if sum(gpus) == 1 else 's'}{of_type}{several}"
    types = sorted({name.removeprefix(_TYPE) for each in nodes for name in each if name.startswith(_TYPE)})
    return f"no GPU{of_type}" + (f" (but {', '.join(types)})" if of_type and types else "")
