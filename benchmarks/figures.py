"""Arithmetic: percentiles, medians over rounds, ratios within rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Records = Sequence[dict[str, Any]]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return round(ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)], 3)


def medians(records: Records, field: str, *keys: str) -> dict[tuple[Any, ...], float]:
    """Return the median of a field over the rounds, by the values of other fields. Records with errors are void."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        if not record.get("errors"):
            groups.setdefault(tuple(record[key] for key in keys), []).append(record[field])
    return {key: statistics.median(values) for key, values in groups.items()}


def ratios(records: Records, ours: str, field: str = "requests_per_s") -> dict[tuple[str, str, int], float]:
    """Return how one server does beside each other one, by model, other server and connections.

    It is the median of the ratios within each round: a machine that grows slower between two rounds changes both
    figures of a ratio alike.
    """
    figures = {
        (record["model"], record["round"], record["connections"], record["server"]): record[field]
        for record in records
        if not record.get("errors")
    }
    found: dict[tuple[str, str, int], list[float]] = {}
    for (model, number, connections, server), value in figures.items():
        mine = figures.get((model, number, connections, ours))
        if server != ours and mine is not None and value:
            found.setdefault((model, server, connections), []).append(mine / value)
    return {key: statistics.median(values) for key, values in found.items()}
