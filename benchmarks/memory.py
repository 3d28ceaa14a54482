"""What is left behind after many loads and evictions: memory, threads, file descriptors, temporary files."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from benchmarks.affinity import MANY
from benchmarks.dialects import NATIVE
from benchmarks.endpoints import Connection, Endpoint, running
from benchmarks.ingress import registry_serve
from benchmarks.places import LOADS
from benchmarks.processes import ServerFailed, free_port

#: Versions that are called in turn; with room for one beside the default, every call is a load and an eviction.
_TURN = [str(version) for version in range(2, 12)]
_EVERY = 10
#: Loads after which memory should not grow: by then every version was loaded several times.
SETTLED = 50


def measure(loads: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return samples over the loads, and how the last compare with the first after settling.

    Raises:
        ServerFailed: a version was not loaded, or answered wrongly.
    """
    LOADS.write_text("")
    port = free_port()
    # Ray puts sockets there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as folder:
        launch = registry_serve(MANY.model, port, variables={"TMPDIR": folder})
        with running("memory", launch, port, NATIVE, MANY) as endpoint:
            samples = _cycles(endpoint, loads, Path(folder), tell)
    counted = len(LOADS.read_text().splitlines())
    return {"loads": loads, "counted_loads": counted, "samples": samples, **growth(samples, SETTLED)}


def growth(samples: list[dict[str, Any]], settled: int) -> dict[str, float]:
    """Compare the first and the last quarter of the samples after settling.

    Returns:
        ``rss_growth``: as a share. ``fds_growth``, ``threads_growth``, ``files_growth``: how many more.
    """
    after = [sample for sample in samples if sample["loads"] >= settled]
    quarter = max(len(after) // 4, 1)

    def change(field: str) -> tuple[float, float]:
        first, last = after[:quarter], after[-quarter:]
        return statistics.median(s[field] for s in first), statistics.median(s[field] for s in last)

    first, last = change("rss_mib")
    grown = {f"{name}_growth": change(name)[1] - change(name)[0] for name in ("fds", "threads", "files")}
    return {"rss_growth": round(last / first - 1, 4), **grown}


def _cycles(endpoint: Endpoint, loads: int, folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    replica = _replica(endpoint)
    samples = []
    with closing(Connection(endpoint.port)) as connection:
        for number in range(1, loads + 1):
            version = _TURN[number % len(_TURN)]
            status, content = connection.post(f"/versions/{version}/serve", NATIVE.encode(MANY.rows(1)))
            if status != 200 or NATIVE.decode(content) != [{"text": f"{version}: a"}]:
                raise ServerFailed(f"Version {version} answered {status}: {content[:500]!r}")
            if number % _EVERY == 0:
                samples.append(_sample(replica, number, folder))
                if number % (_EVERY * 5) == 0:
                    tell("  ".join(f"{name} {value}" for name, value in samples[-1].items()))
    return samples


def _sample(replica: psutil.Process, loads: int, folder: Path) -> dict[str, Any]:
    with replica.oneshot():
        return {
            "loads": loads,
            "rss_mib": round(replica.memory_info().rss / 2**20, 1),
            "fds": replica.num_fds(),
            "threads": replica.num_threads(),
            # Ray's own logs grow in its own folder.
            "files": sum(1 for path in folder.rglob("*") if path.is_file() and "session_" not in str(path)),
        }


def _replica(endpoint: Endpoint) -> psutil.Process:
    found = [each for each in endpoint.running.everything() if "ray::ServeReplica" in " ".join(each.cmdline())]
    if len(found) != 1:
        raise ServerFailed(f"{len(found)} processes look like the one replica.")
    return found[0]
