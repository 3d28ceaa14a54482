"""What is asked of Ray Serve, by a process that is connected to its cluster."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from registry_serve.downloaders import Progress, under_way
from registry_serve.resources import Resources, require
from registry_serve.rollout.outcomes import cause, ready, wait_until_running
from registry_serve.rollout.records import Record

Tell = Callable[[str], None]
State = Literal["running", "deploying", "unhealthy", "failed", "stopped"]

_STATES: Mapping[ApplicationStatus, State] = {
    ApplicationStatus.NOT_STARTED: "deploying",
    ApplicationStatus.DEPLOYING: "deploying",
    ApplicationStatus.RUNNING: "running",
    ApplicationStatus.UNHEALTHY: "unhealthy",
    ApplicationStatus.DEPLOY_FAILED: "failed",
    ApplicationStatus.DELETING: "stopped",
}


class Seen(NamedTuple):
    """How an application is: ``message`` is empty where nothing is wrong."""

    state: State
    replicas_ready: int
    message: str


class Parcel(NamedTuple):
    """A deployment on its way to Serve.

    Attributes:
        name: of the application, and its route.
        pickled: the deployment, by cloudpickle.
        replicas: how many.
        resources: what each takes.
        updates: whether replicas of an earlier one are to be replaced.
    """

    name: str
    pickled: bytes
    replicas: int
    resources: Resources
    updates: bool


def put(parcel: Parcel, tell: Tell) -> None:
    """Give a deployment to Serve.

    Raises:
        ResourcesMissing: the cluster has not what it asks for.
    """
    require(parcel.resources, parcel.replicas)
    deployment: serve.Deployment = pickle.loads(parcel.pickled)  # noqa: S301 - of our own making
    surge = _surge_percent(parcel.resources, parcel.replicas) if parcel.updates else 0
    application = deployment.options(max_surge_percent=surge).bind()
    serve.run_many(
        [serve.RunTarget(application, parcel.name, f"/{parcel.name}")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _surge_percent(resources: Resources, replicas: int) -> int:
    """Return how many of the replicas can start before the earlier ones stop, in percent."""
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    options = resources.actor_options()
    wanted = {"CPU": options.get("num_cpus", 1) * resources.processes, "GPU": resources.gpus}
    room = min([replicas, *(int(free.get(name, 0.0) // each) for name, each in wanted.items() if each)])
    return 100 * room // replicas


def wait(record: Record, tell: Tell) -> None:
    """Wait until all replicas are ready.

    Raises:
        ConfigurationError: one cannot start.
    """

    def loading(ready: int) -> str:
        many = f": {ready} of {record.replicas} replicas are ready" if record.replicas > 1 else ""
        return f"Loading {record.name}{many}{''.join(map(_downloaded, under_way()))}"

    wait_until_running([record.name], tell, loading)


def _downloaded(progress: Progress) -> str:
    tenths = "" if not progress.total_bytes else f", {progress.done_bytes * 10 // progress.total_bytes * 10} %"
    return f"; downloading {progress.what}{tenths}"


def look(tell: Tell) -> dict[str, Seen]:
    """Return how all applications are, by name."""
    return {name: _seen(overview) for name, overview in serve.status().applications.items()}


def remove(name: str, tell: Tell) -> None:
    """Take an application off, once its requests in flight are answered."""
    while name in serve.status().applications:
        tell(f"Stopping {name}: requests in flight are answered first")
        try:
            serve.delete(name)
        except TimeoutError:  # of Ray's waiting; it ends replicas that take longer than their own limit
            continue


def _seen(overview: ApplicationStatusOverview) -> Seen:
    state = _STATES[overview.status]
    said = " ".join(filter(None, [*(each.message for each in overview.deployments.values()), overview.message]))
    return Seen(state, ready(overview), cause(said) if said and state != "running" else "")
