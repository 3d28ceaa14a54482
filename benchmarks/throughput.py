"""Requests per second and latency of one row at several numbers of connections, server after server, in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.dialects import Workload
from benchmarks.endpoints import Endpoint, serving
from benchmarks.servers import Server
from benchmarks.wrk import load

#: Seconds of load before each measurement whose figures are dropped, at most.
WARM_UP_S = 2


def measure(
    servers: Sequence[Server],
    workload: Workload,
    connections: Sequence[int],
    seconds: float,
    rounds: int,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return one record for each server, round and number of connections.

    One server runs at a time. A round starts all of them once, so that a machine that grows slower treats all alike.

    Raises:
        ServerFailed: a server does not come up, or answers wrongly.
    """
    records = []
    for number in range(1, rounds + 1):
        for server in servers:
            with serving(server, workload) as endpoint:
                for count in connections:
                    figures = _one(endpoint, workload, count, seconds)
                    records.append(
                        {
                            "server": server.name,
                            "model": workload.model,
                            "round": number,
                            "connections": count,
                            **figures,
                        }
                    )
                    tell(_line(records[-1]))
    return records


def _one(endpoint: Endpoint, workload: Workload, connections: int, seconds: float) -> dict[str, Any]:
    body = endpoint.dialect.encode(workload.rows(1))
    load(endpoint.url, body, connections, min(WARM_UP_S, seconds / 2))
    figures = load(endpoint.url, body, connections, seconds).as_json()
    endpoint.check(workload, 1)
    return figures


def _line(record: dict[str, Any]) -> str:
    void = f"  VOID: {record['errors']} errors" if record["errors"] else ""
    return (
        f"{record['server']:>16} {record['model']} round {record['round']} at {record['connections']:>2}: "
        f"{record['requests_per_s']:7.0f}/s  p50 {record['p50_ms']:.2f}  p99 {record['p99_ms']:.2f} ms{void}"
    )
