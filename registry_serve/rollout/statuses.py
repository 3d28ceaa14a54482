"""How deployments are: what was asked for, and what Ray Serve says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry_serve.deployment_file import masked
from registry_serve.rollout import records
from registry_serve.rollout.clusters import connected
from registry_serve.rollout.records import Record
from registry_serve.rollout.serving import Seen, State, look
from registry_serve.rollout.telling import log

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DeploymentStatus:
    """How a deployment is.

    Attributes:
        name: its own.
        state: ``"running"``, ``"deploying"``, ``"unhealthy"``, ``"failed"`` or ``"stopped"``.
        replicas_ready: how many answer.
        replicas: how many there should be.
        url: where it answers, as long as it runs.
        serves: a handler's dotted path, or ``models:/NAME/VERSION``.
        deployed: when, with a time zone.
        message: what is wrong, in one line; empty where nothing is.
        file: the deployment file, without its secrets.
    """

    name: str
    state: State
    replicas_ready: int
    replicas: int
    url: str
    serves: str
    deployed: datetime
    message: str
    file: dict[str, Any]


def deployments(on_progress: Tell = log) -> list[DeploymentStatus]:
    """Return all deployments of this machine by name, those that are stopped included."""
    return _statuses(records.everything(), on_progress)


def status(name: str, on_progress: Tell = log) -> DeploymentStatus:
    """Return how a deployment is.

    Raises:
        DeploymentNotFound: there is none of that name.
    """
    return _statuses([records.get(name)], on_progress)[0]


def _statuses(found: list[Record], tell: Tell) -> list[DeploymentStatus]:
    if not found:
        return []
    with connected(tell) as cluster:
        session = None if cluster is None else cluster.session
        seen = {} if cluster is None else cluster.ask(look, tell=tell)
    return [_status(each, each.session == session, seen.get(each.name)) for each in found]


def _status(record: Record, here: bool, seen: Seen | None) -> DeploymentStatus:
    state, ready, message = seen if here and seen is not None else Seen("stopped", 0, _absence(record, here))
    return DeploymentStatus(
        name=record.name,
        state=state,
        replicas_ready=ready,
        replicas=record.replicas,
        url=record.url,
        serves=record.serves,
        deployed=record.deployed,
        message=message,
        file=masked(record.parsed),
    )


def _absence(record: Record, here: bool) -> str:
    if record.stopped:
        return ""
    if here:
        return "It was taken off its cluster by somebody else. Deploy it again."
    return f"Its cluster at {record.address} has ended, or is not the one that RAY_ADDRESS names. Deploy it again."
