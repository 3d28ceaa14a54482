"""The end of persistent deployments, and whether they still are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from registry_serve.errors import ConfigurationError
from registry_serve.persistent import records
from registry_serve.persistent.records import Record
from registry_serve.rollout.background import living
from registry_serve.rollout.clusters import Cluster, answers, connected
from registry_serve.rollout.serving import look, remove
from registry_serve.rollout.state import changing
from registry_serve.rollout.telling import log

Tell = Callable[[str], None]


def terminate(record: Record, tell: Tell = log) -> None:
    """End a deployment, and forget it; a cluster in the background on which nothing else is deployed ends with it.

    Raises:
        ConfigurationError: this process is connected to another cluster.
    """
    with changing(tell):
        take_off(record, tell)


def take_off(record: Record, tell: Tell) -> None:
    """Do as ``terminate`` does, for who is ``changing`` what is deployed."""
    with reached(record, tell) as cluster:
        if cluster is not None:
            there = records.find(record.name)
            if there is None or there.token == record.token:  # another may have been served under that name since
                cluster.ask(remove, record.application, tell=tell)
            if cluster.background is not None and not cluster.ask(look, tell=tell):
                cluster.background.end()
    records.forget(record)


def lives(record: Record, tell: Tell) -> bool:
    """Say whether a deployment is still there.

    Raises:
        ConfigurationError: this process is connected to another cluster.
    """
    with reached(record, tell) as cluster:
        return cluster is not None and record.application in cluster.ask(look, tell=tell)


@contextmanager
def reached(record: Record, tell: Tell) -> Iterator[Cluster | None]:
    """Give the cluster of a deployment for as long as this ``with`` block lasts; None if it has ended.

    Raises:
        ConfigurationError: this process is connected to another cluster.
    """
    behind = living(tell)
    if behind is not None and behind.session == record.session:
        yield Cluster(behind.address, behind.session, background=behind)
        return
    if not ray.is_initialized() and not answers(record.address):
        yield None
        return
    with connected(tell, address=record.address) as cluster:
        here = cluster is not None and cluster.session == record.session
        if not here and cluster is not None and not cluster.ours and answers(record.address):
            raise ConfigurationError(
                f"{record.name} runs on another Ray cluster, at {record.address}, than this process is connected to. "
                "Use another process, or call ray.shutdown() before."
            )
        yield cluster if here else None
