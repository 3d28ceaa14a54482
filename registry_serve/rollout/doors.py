"""Where a cluster answers HTTP requests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ray import serve

from registry_serve.errors import ConfigurationError
from registry_serve.rollout.clusters import Cluster
from registry_serve.rollout.records import Order

_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - what Serve says, not what we listen on


def front_door(cluster: Cluster, order: Order, tell: Callable[[str], None]) -> str:
    """Return the address of a cluster's HTTP endpoint as this machine reaches it; Serve is started if need be.

    This process is connected to the cluster, unless it is the one in the background.

    Args:
        cluster: that is asked.
        order: says where to listen.
        tell: hears that another port was asked for than the cluster listens on.

    Raises:
        ConfigurationError: the cluster in the background listens elsewhere than is asked for.
    """
    behind = cluster.background
    if behind is not None:
        if behind.host != order.host:
            raise ConfigurationError(
                f"Deployments on this machine listen on {behind.host} already, not on {order.host}. Say the same host, "
                "or delete all deployments first."
            )
        _notice(order, behind.port, tell)
        return f"http://127.0.0.1:{behind.port}"
    if not serve.status().proxies:
        serve.start(http_options={"host": order.host, "port": order.port})
        return _address(cluster, order.host, order.port)
    host, port = _listening(cluster) or (order.host, order.port)
    _notice(order, port, tell)
    return _address(cluster, host, port)


def _notice(order: Order, port: int, tell: Callable[[str], None]) -> None:
    if order.port not in (port, Order.model_fields["port"].default):
        tell(f"port {order.port} is not used; the cluster that runs already listens on {port}.")


def _listening(cluster: Cluster) -> tuple[str, int] | None:
    """Ask Ray's REST API, where it has one; nothing else says where Serve listens."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    with suppress(Exception):  # there is no such API, or it is not for us
        told = ServeSubmissionClient(f"http://{cluster.dashboard}").get_serve_details()["http_options"]
        return told["host"], told["port"]
    return None


def _address(cluster: Cluster, host: str, port: int) -> str:
    local = host in (*_EVERYWHERE, "localhost") and cluster.on_this_machine
    if local:
        host = "127.0.0.1"
    elif host in _EVERYWHERE:
        host = cluster.address.rpartition(":")[0]
    return f"http://{host}:{port}"
