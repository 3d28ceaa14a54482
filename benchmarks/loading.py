"""How a warm version answers while another one loads in the same replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from benchmarks.dialects import NATIVE, TEXT, Workload
from benchmarks.endpoints import Connection, Endpoint, running
from benchmarks.figures import percentile
from benchmarks.ingress import registry_serve
from benchmarks.metronome import Metronome
from benchmarks.processes import ServerFailed, free_port

WARM = Workload("loading", TEXT.rows, TEXT.answers)
#: Versions of each kind, called in turn: with room for one beside the default, each call is a load.
KINDS = {
    "waits 3 s": ("2", "3"),
    "burns Python for 3 s": ("4", "5"),
    "in a process of its own": ("7", "8"),
}
#: Loaded first, so that the others' modules clash with what this process has imported.
_FIRST_OF_ITS_NAME = "6"
_IDLE_S = 5.0


def measure(loads: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return one record for each kind of load: latencies of the warm version, idle and while the other loads.

    The idle figures are measured between the loads, so that both are of the same time.

    Raises:
        ServerFailed: a version does not load.
    """
    port = free_port()
    with running("loading", registry_serve(WARM.model, port), port, NATIVE, WARM) as endpoint:
        _load(endpoint, _FIRST_OF_ITS_NAME)
        return [_kind(endpoint, kind, versions, loads, tell) for kind, versions in KINDS.items()]


def _kind(
    endpoint: Endpoint, kind: str, versions: tuple[str, ...], loads: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    idle: list[float] = []
    busy: list[float] = []
    took: list[float] = []
    with Metronome(endpoint.port, endpoint.path, NATIVE.encode(WARM.rows(1))) as metronome:
        time.sleep(1)
        for number in range(loads):
            begin = time.monotonic()
            time.sleep(_IDLE_S)
            middle = time.monotonic()
            _load(endpoint, versions[number % len(versions)])
            end = time.monotonic()
            time.sleep(1)
            idle += metronome.between(begin, middle)
            busy += metronome.between(middle, end)
            took.append(end - middle)
    record = {
        "load": kind,
        "load_s": round(sum(took) / len(took), 2),
        "idle_p50_ms": percentile(idle, 50),
        "idle_p99_ms": percentile(idle, 99),
        "loading_p50_ms": percentile(busy, 50),
        "loading_p99_ms": percentile(busy, 99),
        "loading_max_ms": round(max(busy), 3),
        "samples": len(busy),
        "errors": metronome.errors,
    }
    tell(
        f"{kind}: p99 {record['idle_p99_ms']:.2f} ms idle, {record['loading_p99_ms']:.2f} ms while loading for "
        f"{record['load_s']:.1f} s ({record['samples']} samples, {record['errors']} errors)"
    )
    return record


def _load(endpoint: Endpoint, version: str) -> None:
    with closing(Connection(endpoint.port)) as connection:
        status, content = connection.post(f"/versions/{version}/serve", NATIVE.encode(WARM.rows(1)))
    if status != 200:
        raise ServerFailed(f"Version {version} answered {status}: {content[:500]!r}")
