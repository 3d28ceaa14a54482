"""Taking deployments offline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from registry_serve.errors import ConfigurationError
from registry_serve.rollout import code, records
from registry_serve.rollout.clusters import Cluster, answers, connected
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
        ConfigurationError: it runs on another cluster than the one that is connected to.
    """
    with changing(on_progress):
        record = records.get(name)
        take_off(record, on_progress)
        records.keep(record.model_copy(update={"stopped": True}))


def delete(name: str, on_progress: Tell = log) -> None:
    """Take a deployment offline, once its requests in flight are answered, and forget it.

    A cluster in the background on which nothing else is deployed ends with it. Where the record of the deployment
    cannot be read, what has its name on the connected cluster is taken for it.

    Raises:
        DeploymentNotFound: there is none of that name.
        ConfigurationError: it runs on another cluster than the one that is connected to.
    """
    with changing(on_progress):
        if records.readable(name):
            take_off(records.get(name), on_progress)
        else:
            with connected(on_progress, end_unused=True) as cluster:
                if cluster is not None:
                    cluster.ask(remove, name, tell=on_progress)
        records.forget(name)
        with suppress(ConfigurationError):  # what a record that cannot be read needs is not known
            code.prune({each.code.archive for each in records.everything() if each.code.archive})


def take_off(record: Record, tell: Tell) -> None:
    """Delete a deployment's application. Only who is ``changing`` what is deployed may do it.

    Raises:
        ConfigurationError: it runs on another cluster than the one that is connected to.
    """
    with connected(tell, end_unused=True) as cluster:
        refuse_elsewhere(record, cluster)
        if cluster is not None and cluster.session == record.session:
            cluster.ask(remove, record.name, tell=tell)


def refuse_elsewhere(record: Record, cluster: Cluster | None) -> None:
    """Make sure that a deployment does not run where this process cannot reach it.

    Raises:
        ConfigurationError: its cluster is another one, and still there.
    """
    if record.stopped or (cluster is not None and record.session == cluster.session):
        return
    if cluster is not None and record.address == cluster.address:  # the cluster has been started anew there
        return
    if record.address and answers(record.address):
        raise ConfigurationError(
            f"{record.name} runs on another Ray cluster, at {record.address}. Set RAY_ADDRESS to it; if that is the "
            "cluster in the background of this machine, unset RAY_ADDRESS."
        )
