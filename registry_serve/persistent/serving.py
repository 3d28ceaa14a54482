"""What is asked of Ray Serve about persistent deployments, by a process that is connected to its cluster."""

from __future__ import annotations

from collections.abc import Callable

from ray import serve

from registry_serve.downloaders import under_way
from registry_serve.persistent.application import application, resources
from registry_serve.persistent.records import Record
from registry_serve.resources import require
from registry_serve.rollout.outcomes import wait_until_running

Tell = Callable[[str], None]


def put(record: Record, tell: Tell) -> None:
    """Give a deployment to Serve.

    Raises:
        ResourcesMissing: the cluster has not the GPUs that it asks for.
    """
    model = record.config.model_conf
    require(resources(model), model.replica_num)
    serve.run_many(
        [serve.RunTarget(application(record), record.application, None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def wait(record: Record, tell: Tell) -> None:
    """Wait until the front listens and all replicas are ready.

    Raises:
        ConfigurationError: one cannot start.
    """
    replicas = record.config.model_conf.replica_num

    def loading(ready: int) -> str:
        downloads = "".join(f"; downloading {each.what}" for each in under_way())
        return f"Loading {record.name}: {max(0, ready - 1)} of {replicas} replicas are ready{downloads}"

    wait_until_running([record.application], tell, loading)
