"""The end of persistent deployments, and whether they still are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import ray

from registry_serve.errors import ConfigurationError
from registry_serve.persistent import records, wire
from registry_serve.persistent.records import Record
from registry_serve.rollout.background import Background, living
from registry_serve.rollout.clusters import Cluster, answers, connected
from registry_serve.rollout.serving import look, remove
from registry_serve.rollout.state import changing
from registry_serve.rollout.telling import log

Tell = Callable[[str], None]

_ANSWERS_WITHIN_S = 10.0
_ENDS_WITHIN_S = 60.0
_POLL_S = 0.1


def terminate(record: Record, tell: Tell = log) -> None:
    """End a deployment, and forget it; a cluster in the background on which nothing else is deployed ends with it.

    Raises:
        ConfigurationError: this process is connected to another cluster.
    """
    with changing(tell):
        take_off(record, tell)


def take_off(record: Record, tell: Tell) -> None:
    """Do as ``terminate`` does, for who is ``changing`` what is deployed."""
    # The front needs no connection to Ray, which may ask for a token that this process has not.
    by_its_front = _behind(record, tell) is None and _ended_by_its_front(record)
    if not by_its_front or ray.is_initialized():
        try:
            _remove(record, tell)
        except ConfigurationError:
            if not by_its_front:
                raise
    records.forget(record)


def _remove(record: Record, tell: Tell) -> None:
    with reached(record, tell) as cluster:
        if cluster is None:
            return
        there = records.find(record.name)
        if there is None or there.token == record.token:  # another may have been served under that name since
            cluster.ask(remove, record.application, tell=lambda _: tell(stopping(record.name)))
        if cluster.background is not None and not cluster.ask(look, tell=tell):
            cluster.background.end()


def _ended_by_its_front(record: Record) -> bool:
    """Ask the front to end the deployment, and wait until it has gone; say whether it has."""
    channel, calls = wire.connect(wire.target("localhost", record.config.port_number))
    given = {"metadata": wire.metadata(record.token), "timeout": _ANSWERS_WITHIN_S}
    with channel:
        try:
            calls.end({}, **given)
        except grpc.RpcError:
            return False
        deadline = time.monotonic() + _ENDS_WITHIN_S
        while time.monotonic() < deadline:
            try:
                calls.status({}, **given)
            except grpc.RpcError:
                return True
            time.sleep(_POLL_S)
    return False


def stopping(name: str) -> str:
    """Say that a deployment is taken off."""
    return f"Stopping {name}: requests in flight are ended"


def lives(record: Record, tell: Tell) -> bool:
    """Say whether a deployment is still there.

    Raises:
        ConfigurationError: this process is connected to another cluster.
    """
    with reached(record, tell) as cluster:
        return cluster is not None and record.application in cluster.ask(look, tell=tell)


def _behind(record: Record, tell: Tell) -> Background | None:
    """Return the cluster in the background, if the deployment is on that."""
    behind = living(tell)
    return behind if behind is not None and behind.session == record.session else None


@contextmanager
def reached(record: Record, tell: Tell) -> Iterator[Cluster | None]:
    """Give the cluster of a deployment for as long as this ``with`` block lasts; None if it has ended.

    Raises:
        ConfigurationError: this process is connected to another cluster.
    """
    behind = _behind(record, tell)
    if behind is not None:
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
