"""``python chart.py benchmarks.json benchmarks.png TITLES``. Runs in the environment that has matplotlib."""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.figures import medians

_OURS, _OTHERS, _FLOORS = "#0b6e4f", "#8d99ae", "#ced4da"
_WITHOUT_A_MODEL = ("empty-fastapi", "empty-asgi")


def draw(found: dict[str, Any], path: str, titles: dict[str, str]) -> None:
    """Draw requests per second: a row for each model, a column for each number of connections."""
    measured = found["throughput"]
    rates = medians(measured["results"], "requests_per_s", "model", "connections", "server")
    models, counts = sorted({key[0] for key in rates}, reverse=True), sorted({key[1] for key in rates})
    size = (4.4 * len(counts) + 1.5, 3.2 * len(models) + 0.8)
    figure, axes = plt.subplots(len(models), len(counts), figsize=size, squeeze=False, layout="constrained")
    for row, model in zip(axes, models, strict=True):
        # The same servers in each panel of a row: one whose measurement was void keeps its place.
        servers = [server for server in titles if any((model, count, server) in rates for count in counts)]
        for axis, count in zip(row, counts, strict=True):
            bars = {server: rates.get((model, count, server)) for server in servers}
            _panel(axis, bars, titles, labelled=axis is row[0])
            axis.set_title(f"{model}: {count} connection{'s' if count > 1 else ''}", fontsize=10)
    machine = measured["machine"]
    figure.suptitle(
        f"Requests per second, one row each. {machine['cores']} cores for servers and load together, "
        f"{machine['processor']}, {measured['date'][:10]}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _panel(axis: Any, bars: dict[str, float | None], titles: dict[str, str], *, labelled: bool) -> None:
    names = list(bars)[::-1]
    colors = [_OURS if name == "ours" else _FLOORS if name in _WITHOUT_A_MODEL else _OTHERS for name in names]
    drawn = axis.barh([titles[name] for name in names], [bars[name] or 0 for name in names], color=colors)
    labels = ["void" if bars[name] is None else f"{bars[name]:,.0f}" for name in names]
    axis.bar_label(drawn, labels=labels, padding=3, fontsize=8)
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, labelleft=labelled)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        draw(json.load(file), sys.argv[2], json.loads(sys.argv[3]))
