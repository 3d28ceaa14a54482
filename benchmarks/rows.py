"""How long one request with a thousand rows takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from benchmarks.dialects import Workload
from benchmarks.endpoints import Connection, Endpoint, serving
from benchmarks.processes import ServerFailed
from benchmarks.servers import Server

ROWS = 1000
_WARM_UP = 5


def measure(
    servers: Sequence[Server], workload: Workload, repeats: int, rounds: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return one record for each server and round: the median time of one request, in milliseconds."""
    records = []
    for number in range(1, rounds + 1):
        for server in servers:
            with serving(server, workload) as endpoint:
                median = statistics.median(_times(endpoint, workload, repeats))
            record = {"server": server.name, "model": workload.model, "round": number, "rows": ROWS}
            records.append({**record, "median_ms": round(median, 2)})
            tell(f"{server.name:>17} {workload.model} round {number}: {ROWS} rows in {median:.1f} ms")
    return records


def _times(endpoint: Endpoint, workload: Workload, repeats: int) -> list[float]:
    endpoint.check(workload, ROWS)
    body, times = endpoint.dialect.encode(workload.rows(ROWS)), []
    with closing(Connection(endpoint.port)) as connection:
        for _ in range(_WARM_UP + repeats):
            begin = time.perf_counter()
            status, content = connection.post(endpoint.path, body)
            times.append((time.perf_counter() - begin) * 1000)
            if status != 200:
                raise ServerFailed(f"It answered {status}: {content[:500]!r}")
    return times[_WARM_UP:]
