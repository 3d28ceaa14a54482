"""How often versions are loaded when there are more of them than one replica has room for."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from benchmarks.dialects import NATIVE, Dialect, Workload
from benchmarks.endpoints import Connection, Endpoint, running
from benchmarks.ingress import registry_serve
from benchmarks.places import LOADS
from benchmarks.processes import ServerFailed, free_port
from benchmarks.registry import VERSIONS

#: Versions that each replica keeps, the default included.
ROOM = 24
_SEED = 20240101
_READY_WITHIN_S, _NOTICED_WITHIN_S = 60, 5
MANY = Workload("many", lambda count: [{"prompt": "a"}] * count, lambda count: [{"text": "1: a"}] * count)
#: HAProxy's own choice of a replica, which knows nothing of versions.
_WITHOUT = {"RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn"}


def measure(replicas: list[int], requests: int, clients: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return one record for each number of replicas, with and without affinity.

    Clients name the version in the header ``serve_multiplexed_model_id``, drawn evenly from all, with a fixed seed.
    """
    records = []
    for count in replicas:
        for affinity in (True, False) if count > 1 else (True,):
            records.append(_one(count, affinity, requests, clients))
            tell(
                f"{count} replicas {'with' if affinity else 'without'} affinity: {records[-1]['loads']} loads of "
                f"{VERSIONS} versions in {requests} requests, {records[-1]['errors']} errors"
            )
    return records


def _one(replicas: int, affinity: bool, requests: int, clients: int) -> dict[str, Any]:
    LOADS.write_text("")
    port = free_port()
    options = ("--replicas", str(replicas), "--max-models-per-replica", str(ROOM))
    launch = registry_serve(MANY.model, port, *options, variables={} if affinity else _WITHOUT)
    with running("affinity", launch, port, NATIVE, MANY) as endpoint:
        _wait_for(replicas)
        wrong = _stream(endpoint, NATIVE, requests, clients)
        loads = _loads() - replicas
    return {
        "replicas": replicas,
        "affinity": affinity,
        "versions": VERSIONS,
        "room": ROOM,
        "requests": requests,
        "clients": clients,
        "loads": loads,
        "errors": wrong.total(),
        "wrong": dict(wrong),
    }


def _stream(endpoint: Endpoint, dialect: Dialect, requests: int, clients: int) -> Counter[str]:
    """Send all requests over a few connections; return what was answered instead of the right answer, and how often."""
    drawn = random.Random(_SEED)  # noqa: S311 - a stream that is the same every time
    versions = [str(drawn.randint(1, VERSIONS)) for _ in range(requests)]
    body = dialect.encode(MANY.rows(1))

    def client(number: int) -> Counter[str]:
        wrong: Counter[str] = Counter()
        with closing(Connection(endpoint.port)) as connection:
            for version in versions[number::clients]:
                status, content = connection.post(endpoint.path, body, {"serve_multiplexed_model_id": version})
                if status != 200 or dialect.decode(content) != [{"text": f"{version}: a"}]:
                    wrong[f"{status} {content[:200]!r}"] += 1
        return wrong

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients)), Counter())


def _wait_for(replicas: int) -> None:
    """Wait until every replica has preloaded the default version, and HAProxy has noticed it.

    Raises:
        ServerFailed: one does not.
    """
    deadline = time.monotonic() + _READY_WITHIN_S
    while _loads() < replicas:
        if time.monotonic() > deadline:
            raise ServerFailed(f"{_loads()} of {replicas} replicas are ready after {_READY_WITHIN_S} s.")
        time.sleep(0.1)
    time.sleep(_NOTICED_WITHIN_S)


def _loads() -> int:
    return len(LOADS.read_text().splitlines())
