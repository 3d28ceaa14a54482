"""Taking deployments offline."""

from __future__ import annotations

from collections.abc import Callable

from registry_serve.rollout import code, records
from registry_serve.rollout.clusters import connected
from registry_serve.rollout.records import Record
from registry_serve.rollout.serving import remove
from registry_serve.rollout.state import changing
from registry_serve.rollout.telling import log

Tell = Callable[[str], None]


def stop(name: str, on_progress: Tell = log) -> None:
    """Take a deployment offline, once its requests in flight are answered; ``update`` brings it back.

    A cluster in the background on which nothing else is deployed ends with it.

    Raises:
        DeploymentNotFound: there is none of that name.
    """
    with changing(on_progress):
        record = records.get(name)
        take_off(record, on_progress)
        records.keep(record.model_copy(update={"stopped": True}))


def delete(name: str, on_progress: Tell = log) -> None:
    """Take a deployment offline, once its requests in flight are answered, and forget it.

    A cluster in the background on which nothing else is deployed ends with it.

    Raises:
        DeploymentNotFound: there is none of that name.
    """
    with changing(on_progress):
        take_off(records.get(name), on_progress)
        records.forget(name)
        code.prune({each.code.archive for each in records.everything() if each.code.archive})


def take_off(record: Record, tell: Tell) -> None:
    """Delete a deployment's application. Only who is ``changing`` what is deployed may do it."""
    with connected(tell, end_unused=True) as cluster:
        if cluster is not None and cluster.session == record.session:
            cluster.ask(remove, record.name, tell=tell)
