"""The record of a deployment -> an application of Ray Serve: the front, and one deployment for each replica.

Serve starts any of them anew when it dies, and they go together. Each replica is a deployment of its own, since only
so a request can be given to the one whose turn it is.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment

from registry_serve.deployment.handled import ServedHandler
from registry_serve.deployment.replica import Replica, deployment_of
from registry_serve.handlers import HandlerSpec
from registry_serve.persistent.config import ModelConfig
from registry_serve.persistent.front import Front
from registry_serve.persistent.records import Record
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.resources import Resources

_MOST_PENDING = 10_000
#: An answer may have thousands of tokens, and wait for others.
_LIMITS = Limits(request_timeout_s=3600.0, max_pending_requests=_MOST_PENDING)
_BATCHING = BatchPolicy(mode="on", max_waiting=_MOST_PENDING)
#: What ends a deployment does not wait for long answers, and what has died is missed soon.
_OPTIONS: dict[str, Any] = {
    "health_check_period_s": 1.0,
    "graceful_shutdown_timeout_s": 5.0,
    "graceful_shutdown_wait_loop_s": 0.1,
    "logging_config": {"log_level": "INFO", "enable_access_log": False},
}


def application(record: Record) -> Application:
    """Make what a record describes, for the cluster that this process is connected to."""
    model = record.config.model_conf
    replicas = [_replica(model, number).bind() for number in range(model.replica_num)]
    front: Any = serve.deployment(name="front", ray_actor_options={"num_cpus": 0, "resources": _here()}, **_OPTIONS)(
        Front
    )
    made: Application = front.bind(str(record.path), *replicas)
    return made


def resources(model: ModelConfig) -> Resources:
    """Return what one replica takes: a GPU for each of its processes, where the cluster has any."""
    gpus = model.tensor_parallel if ray.cluster_resources().get("GPU") else 0  # type: ignore[no-untyped-call]
    return Resources(gpus=gpus, processes=model.tensor_parallel)


def _replica(model: ModelConfig, number: int) -> Deployment:
    parameters: dict[str, Any] = {"task": model.task, "model_name_or_path": model.model_name_or_path}
    if model.tokenizer not in (None, model.model_name_or_path):
        parameters["tokenizer_name_or_path"] = model.tokenizer
    if model.tensor_parallel > 1:
        parameters["tensor_parallel"] = model.tensor_parallel
    name, taken = f"replica-{number}", resources(model)
    replica = Replica(name, name, cache=CachePolicy(max_models=1), batching=_BATCHING, limits=_LIMITS, resources=taken)
    made = deployment_of(ServedHandler(HandlerSpec(parameters=parameters), replica), web=False)
    return made.options(**_OPTIONS)


def _here() -> dict[str, float]:
    """Return a resource that only this node has: the front listens where its clients are."""
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return {f"node:{address}": 0.001}
