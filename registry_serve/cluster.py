"""The process that starts a cluster, serves on it, and drains it: ``python -m registry_serve.cluster``.

It is a process of its own, with a session of its own, so that a terminal's Ctrl-C does not reach Ray's processes before
the requests in flight have ended, and so that whatever Ray prints stays apart from what we tell.

In: a ``Launch`` as one line of JSON; then nothing, until the end of input asks it to drain and end.
Out: one JSON object per line: ``{"doing": ...}`` while it starts, then
``{"running": session folder}``; or an ``{"error": ...}``.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from registry_serve import errors
from registry_serve.application import AppArgs, deployment_of
from registry_serve.errors import ConfigurationError, RegistryServeError
from registry_serve.launch import Launch, ServedApplication

Tell = Callable[..., None]

#: Requests and answers do not go through Ray's object store; Ray's own default takes a third of the memory.
_OBJECT_STORE_BYTES = 256 * 2**20
_POLL_S = 0.1
_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (.+)$", re.MULTILINE)
_CHAINED = re.compile(r"^The above exception was the direct cause of the following exception:$", re.MULTILINE)


def main() -> int:
    """Serve until the input ends; return the exit code."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is no message of ours

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=told, flush=True)

    return _serve(Launch.model_validate_json(sys.stdin.readline()), tell)


def _serve(launch: Launch, tell: Tell) -> int:
    tell(doing="Starting Ray")
    session = _start(launch)
    try:
        _bring_up(launch, tell)
        tell(running=session)
        sys.stdin.read()
        _drain(launch)
    except RegistryServeError as error:
        tell(error=str(error))
        return 1
    else:
        return 0
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _bring_up(launch: Launch, tell: Tell) -> None:
    _require_resources(launch)
    tell(doing="Starting Ray Serve")
    serve.start(
        http_options={"host": launch.host, "port": launch.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    _deploy(launch)
    _wait_until_running(launch, tell)


def _start(launch: Launch) -> str:
    # CPUs are Ray's book-keeping: replicas that share cores are slower, but not refused.
    needed = len(launch.applications) * launch.replicas * launch.cpus
    started: Any = ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(needed)),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    return str(started.address_info["session_dir"])


def _require_resources(launch: Launch) -> None:
    if not launch.gpus:
        return
    there = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
    wanted = len(launch.applications) * launch.replicas
    # A replica with more than one GPU has whole ones; several replicas can share one.
    room = int(there // launch.gpus) if launch.gpus >= 1 else int(there) * int(1 // launch.gpus)
    if room < wanted:
        raise ConfigurationError(
            f"This machine has {there:g} GPUs, room for {room} replicas with {launch.gpus:g} each, and you ask for "
            f"{wanted}. Lower --replicas or --gpus."
        )


def _deploy(launch: Launch) -> None:
    served = launch.applications
    targets = [serve.RunTarget(_application(each, launch), each.name, each.route_prefix) for each in served]
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _application(served: ServedApplication, launch: Launch) -> serve.Application:
    deployment = deployment_of(AppArgs(**served.args)).options(
        num_replicas=launch.replicas,
        ray_actor_options={"num_cpus": launch.cpus, "num_gpus": launch.gpus},
        graceful_shutdown_timeout_s=launch.drain_s,
        graceful_shutdown_wait_loop_s=_POLL_S,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind()


def _wait_until_running(launch: Launch, tell: Tell) -> None:
    """Wait until every replica of every application is ready; there is no limit to how long a model may load.

    Raises:
        ConfigurationError: a replica cannot start. Ray would try again and again; nothing says that it would help.
    """
    said = ""
    while True:
        applications = serve.status().applications
        for overview in applications.values():
            _raise_failure(overview)
        if all(each.status == ApplicationStatus.RUNNING for each in applications.values()):
            return
        doing = _progress(applications, launch)
        if doing != said:
            tell(doing=doing)
            said = doing
        time.sleep(_POLL_S)


def _raise_failure(overview: ApplicationStatusOverview) -> None:
    messages = [each.message for each in overview.deployments.values()]
    for message in messages:
        if "failed to start" in message:
            raise ConfigurationError(cause(message))
    if overview.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
        raise ConfigurationError(cause(" ".join([*filter(None, messages), overview.message])))


def _progress(applications: dict[str, ApplicationStatusOverview], launch: Launch) -> str:
    states = [each.replica_states for app in applications.values() for each in app.deployments.values()]
    ready = sum(count for each in states for state, count in each.items() if state == "RUNNING")
    wanted = launch.replicas * len(launch.applications)
    what = ", ".join(f"{each.args['model']} version {each.args['version']}" for each in launch.applications)
    return f"Loading {what}" + (f": {ready} of {wanted} replicas are ready" if wanted > 1 else "")


def cause(message: str) -> str:
    """Return what a replica failed of, in one line, from the traces that Ray tells.

    An error of ours is followed by the exception that caused it, if one did.
    """
    raised = [_RAISED.findall(part) for part in _CHAINED.split(message)]
    last: list[tuple[str, str]] = [found[-1] for found in raised if found]
    if not last:
        return " ".join(message.split())[-500:]
    name, sentence = last[-1]
    if not (isinstance(getattr(errors, name, None), type)):
        return f"{name}: {sentence}"
    return sentence + "".join(f" {first}: {why}" for first, why in last[-2:-1])


def _drain(launch: Launch) -> None:
    """Let the requests in flight end, then stop the replicas."""
    with ThreadPoolExecutor(len(launch.applications)) as pool:
        list(pool.map(_delete, (each.name for each in launch.applications)))


def _delete(name: str) -> None:
    while True:
        try:
            serve.delete(name)
        except TimeoutError:  # of Ray's waiting; it ends replicas that take longer than their own limit
            continue
        return


if __name__ == "__main__":
    sys.exit(main())
