"""``serve`` and ``client``: a model online until it is ended, and the way to it from other processes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import Any

from registry_serve.errors import ConfigurationError, DeploymentEnded, DeploymentUnavailable
from registry_serve.launch import free_ports, require_free
from registry_serve.persistent import records
from registry_serve.persistent.clients import PersistentClient
from registry_serve.persistent.config import MIIConfig, ModelConfig, configured
from registry_serve.persistent.ending import lives, take_off
from registry_serve.persistent.records import Record
from registry_serve.persistent.serving import put, wait
from registry_serve.rollout.background import start
from registry_serve.rollout.clusters import Cluster, connected
from registry_serve.rollout.serving import look, remove
from registry_serve.rollout.state import changing
from registry_serve.rollout.telling import log

Tell = Callable[[str], None]

_LOOPBACK = "127.0.0.1"
#: Where a cluster in the background that is started for this answers HTTP, if nobody is there yet.
_PREFERRED_PORT = 8000
#: How long the front may take to find the replicas that are ready.
_FOUND_WITHIN_S = 60.0
_POLL_S = 0.1


def serve(
    model_name_or_path: str = "",
    model_config: Mapping[str, Any] | ModelConfig | None = None,
    mii_config: Mapping[str, Any] | MIIConfig | None = None,
    *,
    on_progress: Tell = log,
    **keywords: Any,
) -> PersistentClient:
    """Take a language model online until it is ended, and return a client once it answers.

        client = serve("mistralai/Mistral-7B-v0.1", replica_num=2)
        client(["DeepSpeed is", "Seattle is"], max_new_tokens=128)

    It outlives this process. It runs on the Ray cluster that this process is connected to; else on the one that
    ``RAY_ADDRESS`` names; else on one in the background of this machine, which ends with its last deployment.

    Args:
        model_name_or_path: the model's name on the hub, or a folder.
        model_config: fields of :class:`ModelConfig`.
        mii_config: fields of :class:`MIIConfig`.
        on_progress: hears, in short sentences, what is being done.
        **keywords: fields of either.

    Raises:
        UnknownArgument: a keyword is a field of neither.
        ResourcesMissing: the cluster has not the GPUs that it asks for.
        ConfigurationError: it cannot be served, and nothing of it is left; the message is one line that says why.
    """
    config = configured(model_name_or_path, model_config, mii_config, keywords)
    with ExitStack() as connection:
        with changing(on_progress):
            _require_room(config, on_progress)
            record, cluster = _handed_over(config, connection, on_progress)
        try:
            cluster.ask(wait, record, tell=on_progress)
            client = PersistentClient(record.config)
            _wait_until_all_answer(client)
        except BaseException:
            with changing(on_progress):
                take_off(record, on_progress)
            raise
    return client


def client(model_or_deployment_name: str) -> PersistentClient:
    """Return a client of a deployment that any process of this user and machine has served.

    Args:
        model_or_deployment_name: the deployment's name, or its model's as it was given to ``serve``.

    Raises:
        DeploymentNotFound: there is none.
        DeploymentEnded: there was one, and its cluster is gone.
        DeploymentUnavailable: it is there, and does not answer yet.
    """
    record = records.named(model_or_deployment_name)
    found = PersistentClient(record.config)
    try:
        found.status()
    except DeploymentUnavailable:
        if not lives(record, log):
            _forget_if_ended(record)
        raise DeploymentUnavailable(record.name, "is starting, or its front starts anew") from None
    return found


def _forget_if_ended(record: Record) -> None:
    """Forget a deployment that has ended, unless it is one that only begins.

    Raises:
        DeploymentEnded: it has.
    """
    with changing(log):  # who serves it has written the record before Serve has it
        there = records.find(record.name)
        if there is not None and (there.token != record.token or lives(there, log)):
            return
        records.forget(record)
    raise DeploymentEnded(record.name, records.names()) from None


def _require_room(config: MIIConfig, tell: Tell) -> None:
    """Make sure that nothing stands in the way, before anything starts.

    Raises:
        ConfigurationError: name or port are taken.
    """
    for record in records.everything():
        if record.name != config.name and record.config.port_number != config.port_number:
            continue
        if not lives(record, tell):
            tell(f"The deployment {record.name!r} has ended with its cluster; what was written down of it is removed")
            records.forget(record)
        elif record.name == config.name:
            raise ConfigurationError(
                f"The deployment {config.name!r} is there already. Connect with client({config.name!r}), end it with "
                "terminate_server(), or give this one another deployment_name."
            )
        else:
            raise ConfigurationError(
                f"Port {config.port_number} belongs to the deployment {record.name!r}. Give another port_number."
            )
    require_free(_LOOPBACK, config.port_number, "port_number")
    if config.enable_restful_api:
        require_free(config.restful_api_host, config.restful_api_port, "restful_api_port")


def _handed_over(config: MIIConfig, connection: ExitStack, tell: Tell) -> tuple[Record, Cluster]:
    """Write down what a deployment is, and give it to Serve."""
    cluster = connection.enter_context(connected(tell))
    if cluster is not None:
        return _given(config, cluster, tell), cluster
    ours = [config.port_number, config.restful_api_port]
    started = start(tell, _LOOPBACK, *free_ports([_PREFERRED_PORT], but=ours))
    try:
        cluster = connection.enter_context(connected(tell))
        assert cluster is not None
        return _given(config, cluster, tell), cluster
    except BaseException:
        started.end()  # nothing else can be on it: who deploys waits
        raise


def _given(config: MIIConfig, cluster: Cluster, tell: Tell) -> Record:
    record = Record(
        config=config.model_copy(update={"deployment_name": config.name}),
        token=secrets.token_urlsafe(),
        address=cluster.address,
        session=cluster.session,
        created=datetime.now(timezone.utc),
    )
    there = cluster.ask(look, tell=tell).get(record.application)
    if there is not None and there.state == "stopped":  # an earlier one, on its way out
        cluster.ask(remove, record.application, tell=tell)
    elif there is not None:
        raise ConfigurationError(
            f"The cluster serves another application {record.application!r} already. Give another deployment_name."
        )
    records.keep(record)  # before Serve has it: the front reads it, and who is interrupted can still end it
    try:
        cluster.ask(put, record, tell=tell)
    except BaseException:
        take_off(record, tell)
        raise
    return record


def _wait_until_all_answer(client: PersistentClient) -> None:
    """Wait until the front has found the replicas: Serve knows of them a moment before."""
    deadline = time.monotonic() + _FOUND_WITHIN_S
    while not all(each["up"] for each in client.status()["replicas"]):
        if time.monotonic() > deadline:
            raise ConfigurationError("The replicas are ready, but do not answer. The log of the front says why.")
        time.sleep(_POLL_S)
