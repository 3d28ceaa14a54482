"""How persistent deployments are, for who lists deployments of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from registry_serve import rollout
from registry_serve.deployment import deployment_name
from registry_serve.errors import ConfigurationError, DeploymentNotFound, RegistryServeError
from registry_serve.persistent import records
from registry_serve.persistent.clients import PersistentClient
from registry_serve.persistent.ending import reached, stopping, terminate
from registry_serve.persistent.records import Record
from registry_serve.rollout import DeploymentStatus
from registry_serve.rollout.clusters import connected
from registry_serve.rollout.serving import Seen, look, remove
from registry_serve.rollout.state import changing
from registry_serve.rollout.telling import log

Tell = Callable[[str], None]

#: A front that is busy with others answers late.
_TOLD_WITHIN_S = 10.0


def deployments(on_progress: Tell = log) -> list[DeploymentStatus]:
    """Return all persistent deployments of this user and machine by name."""
    return [_status(record, on_progress) for record in records.everything()]


def names() -> list[str]:
    """Return their names, also of those whose record cannot be read."""
    return records.names()


def status(name: str, on_progress: Tell = log) -> DeploymentStatus:
    """Return how one is.

    Raises:
        DeploymentNotFound: there is none of that name.
        ConfigurationError: its record cannot be read.
    """
    record = records.find(name)
    if record is None:
        raise DeploymentNotFound(name, records.names())
    return _status(record, on_progress)


def replicas(name: str) -> list[Mapping[str, Any]]:
    """Return what the replicas of one do, as ``PersistentClient.status`` tells it; none where it does not answer.

    Raises:
        DeploymentNotFound: there is none of that name.
        ConfigurationError: its record cannot be read.
    """
    client = PersistentClient(records.named(name).config)
    try:
        told: list[Mapping[str, Any]] = client.status(_TOLD_WITHIN_S)["replicas"]
    except RegistryServeError:  # something else may answer at its port
        return []
    return told


def require_of_a_file(name: str) -> None:
    """Make sure that a name or a pattern does not mean persistent deployments only.

    Raises:
        ConfigurationError: it does.
    """
    meant = [each for each in names() if fnmatchcase(each, name)]
    if meant and not any(fnmatchcase(each, name) for each in rollout.names()):
        raise ConfigurationError(
            f"{meant[0]} is a persistent deployment. `registry-serve describe deployment {meant[0]}` tells how it is, "
            f"`registry-serve delete deployment {meant[0]}` ends it, and registry_serve.client({meant[0]!r}) asks it."
        )


def delete(name: str, on_progress: Tell = log) -> None:
    """End one, as ``PersistentClient.terminate_server`` does.

    Where its record cannot be read, what has its name on the connected cluster is taken for it, unless a deployment of
    a file has that name.

    Raises:
        DeploymentNotFound: there is none of that name.
        ConfigurationError: this process is connected to another cluster.
    """
    if records.readable(name):
        terminate(records.named(name), on_progress)
        return
    application = deployment_name(name)
    with changing(on_progress), connected(on_progress, end_unused=True) as cluster:
        if cluster is not None and application not in rollout.names():
            cluster.ask(remove, application, tell=lambda _: on_progress(stopping(name)))
        records.discard(name)


def _status(record: Record, tell: Tell) -> DeploymentStatus:
    seen = Seen("stopped", 0, f"Its cluster at {record.address} has ended. Serve it again.")
    try:
        with reached(record, tell) as cluster:
            if cluster is not None:
                there = cluster.ask(look, tell=tell)
                seen = there.get(record.application, Seen("stopped", 0, "Somebody took it off. Serve it again."))
    except ConfigurationError as error:
        seen = Seen("stopped", 0, error.detail)
    config = record.config
    return DeploymentStatus(
        name=record.name,
        state=seen.state,
        replicas_ready=max(0, seen.replicas_ready - 1),  # the front is one as well
        replicas=config.model_conf.replica_num,
        url=f"grpc://127.0.0.1:{config.port_number}",
        serves=config.model_conf.model_name_or_path,
        deployed=record.created,
        message=seen.message,
        file=config.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    )
