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
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve

from registry_serve.application import AppArgs, deployment_of
from registry_serve.errors import RegistryServeError
from registry_serve.launch import Launch, ServedApplication
from registry_serve.resources import Resources, require
from registry_serve.rollout.outcomes import wait_until_running

Tell = Callable[..., None]

#: Requests and answers do not go through Ray's object store; Ray's own default takes a third of the memory.
_OBJECT_STORE_BYTES = 256 * 2**20
_POLL_S = 0.1


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
    require(_resources(launch), len(launch.applications) * launch.replicas)
    tell(doing="Starting Ray Serve")
    serve.start(
        http_options={"host": launch.host, "port": launch.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    _deploy(launch)
    names = [each.name for each in launch.applications]
    wait_until_running(names, lambda doing: tell(doing=doing), lambda ready: _loading(launch, ready))


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


def _deploy(launch: Launch) -> None:
    served = launch.applications
    targets = [serve.RunTarget(_application(each, launch), each.name, each.route_prefix) for each in served]
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _application(served: ServedApplication, launch: Launch) -> serve.Application:
    deployment = deployment_of(AppArgs(**served.args)).options(
        num_replicas=launch.replicas,
        ray_actor_options=_resources(launch).actor_options(),
        graceful_shutdown_timeout_s=launch.drain_s,
        graceful_shutdown_wait_loop_s=_POLL_S,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind()


def _resources(launch: Launch) -> Resources:
    return Resources(launch.cpus, launch.gpus, launch.gpu_type)


def _loading(launch: Launch, ready: int) -> str:
    wanted = launch.replicas * len(launch.applications)
    what = ", ".join(f"{each.args['model']} version {each.args['version']}" for each in launch.applications)
    return f"Loading {what}" + (f": {ready} of {wanted} replicas are ready" if wanted > 1 else "")


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
