"""How long a server takes from its command to its first right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.dialects import Workload
from benchmarks.endpoints import serving
from benchmarks.servers import Server


def measure(
    servers: Sequence[Server], workload: Workload, rounds: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return one record for each server and round. Files are in the page cache, bytecode is compiled."""
    records = []
    for number in range(1, rounds + 1):
        for server in servers:
            with serving(server, workload) as endpoint:
                seconds = round(endpoint.ready_after_s, 2)
            records.append({"server": server.name, "model": workload.model, "round": number, "seconds": seconds})
            tell(f"{server.name:>17} round {number}: first answer after {seconds:.1f} s")
    return records
