"""The Ray cluster that deployments run on: the one that is there, or the one in the background."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from registry_serve.errors import ConfigurationError
from registry_serve.rollout import line
from registry_serve.rollout.background import Background, living
from registry_serve.rollout.serving import look

Tell = Callable[[str], None]
Answer = TypeVar("Answer")

_ANSWERS_WITHIN_S = 3.0


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process can use.

    Attributes:
        address: of Ray.
        session: folder of Ray's files, which names this cluster among all that ever were.
        dashboard: address of Ray's REST API, empty where it has none.
        on_this_machine: whether all of its nodes share this machine's files.
        background: the one in the background, if it is that; it is asked by its line.
        ours: whether this process connected only for what it does now, and may connect anew.
    """

    address: str
    session: str
    dashboard: str = ""
    on_this_machine: bool = True
    background: Background | None = None
    ours: bool = True

    def ask(self, function: Callable[..., Answer], *given: Any, tell: Tell) -> Answer:
        """Call a function where Ray is connected: here, or at the other end of the line."""
        behind = self.background
        if behind is None:
            return function(*given, tell)
        return line.ask(behind.socket, bytes.fromhex(behind.key), function, *given, tell=tell)


@contextmanager
def connected(
    tell: Tell, *, address: str | None = None, working_dir: str | None = None, end_unused: bool = False
) -> Iterator[Cluster | None]:
    """Give the cluster that is there, if one is, for as long as this ``with`` block lasts.

    Where this process is connected already, that cluster is taken and stays connected; else the one that
    ``RAY_ADDRESS`` names; else the one in the background.

    Args:
        tell: hears what happens.
        address: instead of ``RAY_ADDRESS``.
        working_dir: uploaded for what is deployed from this connection.
        end_unused: whether a cluster in the background is ended afterwards when nothing is deployed on it any more.
            Only who is ``changing`` what is deployed may say so.

    Raises:
        ConfigurationError: the cluster does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    if ray.is_initialized():
        yield _cluster(ray.init(ignore_reinit_error=True, logging_level=logging.ERROR), ours=False)
    elif address:
        try:
            yield _cluster(_connect(address, working_dir), ours=True)
        finally:
            ray.shutdown()
    elif (behind := living(tell)) is not None:
        cluster = Cluster(behind.address, behind.session, background=behind)
        yield cluster
        if end_unused and not cluster.ask(look, tell=tell):
            behind.end()
    else:
        yield None


def answers(address: str) -> bool:
    """Say whether somebody listens at an address, ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN_S):
            return True
    except (OSError, ValueError):
        return False


def _connect(address: str, working_dir: str | None) -> Any:
    if "://" in address:
        raise ConfigurationError(
            f"RAY_ADDRESS is {address}, which deployments cannot use. Give the address of the cluster's GCS: HOST:6379."
        )
    if ":" in address and not answers(address):  # Ray itself would try for a minute
        raise ConfigurationError(
            f"Nobody listens at {address}, which RAY_ADDRESS names. Start that cluster, or unset it."
        )
    try:
        return ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=None if working_dir is None else {"working_dir": working_dir},
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300].removesuffix(".")
        raise ConfigurationError(f"The Ray cluster at {address} cannot be used: {reason}. {_token()}") from None


def _token() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return "RAY_AUTH_MODE=token is set: the cluster must ask for the same token."
    return "RAY_AUTH_MODE=token is not set: set it if the cluster asks for a token."


def _cluster(context: Any, *, ours: bool) -> Cluster:
    told = context.address_info
    here = {ray.util.get_node_ip_address(), "127.0.0.1"}  # type: ignore[no-untyped-call]
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return Cluster(
        address=told["gcs_address"],
        session=told["session_dir"],
        dashboard=told.get("webui_url") or "",
        on_this_machine=all(
            node["NodeManagerAddress"] in here and node["NodeManagerHostname"] == socket.gethostname() for node in nodes
        ),
        ours=ours,
    )
