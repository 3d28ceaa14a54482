"""Results as tables, and what goes into the documentation."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import environments
from benchmarks.figures import medians, ratios
from benchmarks.places import REPOSITORY
from benchmarks.servers import SERVERS

_OURS = "ours"
#: Around what ``publish`` writes into docs/benchmarks.md.
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the tables of what was measured."""
    makers: dict[str, tuple[Callable[[Any], Table], ...]] = {
        "throughput": (throughput, ratio, voided),
        "rows": (rows,),
        "overhead": (overhead,),
        "loading": (loading,),
        "affinity": (affinity,),
        "memory": (memory,),
        "start": (start,),
    }
    made = [
        make(found[measurement]["results"])
        for measurement, several in makers.items()
        if measurement in found
        for make in several
    ]
    return [table for table in made if table.row_count]


def publish(found: dict[str, Any], docs: Path) -> None:
    """Write all raw results into one file, draw the chart beside it, and put the tables into the page."""
    raw, page = docs / "benchmarks.json", docs / "benchmarks.md"
    raw.write_text(json.dumps(found, indent=1) + "\n")
    environments.build("chart")
    titles = json.dumps({name: server.title for name, server in SERVERS.items()})
    subprocess.run(
        [environments.program("chart"), "-m", "benchmarks.chart", str(raw), str(docs / "benchmarks.png"), titles],
        check=True,
        cwd=REPOSITORY,
        env={"MPLBACKEND": "Agg", "PATH": "/usr/bin:/bin"},
    )
    before, _, rest = page.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    written = "\n\n".join([_made_with(found), "![](benchmarks.png)", *map(markdown, tables(found))])
    page.write_text(f"{before}{_BEGIN}\n\n{written}\n\n{_END}{after}")


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    lines += [list(map(str, cells)) for cells in zip(*(column.cells for column in table.columns), strict=True)]
    rows = ("| " + " | ".join(cell.replace("\n", "<br>") for cell in line) + " |" for line in lines)
    return "\n".join([f"**{table.title}**", "", *rows])


def _made_with(found: dict[str, Any]) -> str:
    newest = max(found.values(), key=lambda each: str(each["date"]))
    machine, versions = newest["machine"], newest["versions"]
    return (
        f"Measured on {newest['date'][:10]} on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}), Python {machine['python']}, Ray {versions['ray']}, "
        f"commit {versions['commit']}. Raw results: [benchmarks.json](benchmarks.json)."
    )


def throughput(records: list[dict[str, Any]]) -> Table:
    """Requests per second with p50, p95 and p99: medians over the rounds."""
    keys = ("model", "server", "connections")
    rates = medians(records, "requests_per_s", *keys)
    latencies = [medians(records, field, *keys) for field in ("p50_ms", "p95_ms", "p99_ms")]
    counts = _connections(rates)
    heads = [f"at {count}" for count in counts]
    table = _table("Requests per second, one row each; p50 / p95 / p99 in ms", ["model", "server", *heads])
    for model, server in dict.fromkeys((key[0], key[1]) for key in rates):
        cells = []
        for count in counts:
            key = (model, server, count)
            times = " / ".join(f"{each[key]:.1f}" for each in latencies) if key in rates else ""
            cells.append(f"{rates[key]:,.0f}\n{times}" if key in rates else "-")
        table.add_row(model, _title(server), *cells)
    return table


def ratio(records: list[dict[str, Any]]) -> Table:
    """How many times as many requests per second: medians of the ratios within each round."""
    found = ratios(records, _OURS)
    counts = _connections(found)
    table = _table("registry_serve's requests per second divided by theirs", ["model", "divided by"])
    for count in counts:
        table.add_column(f"at {count}", justify="right")
    for model, server in dict.fromkeys((key[0], key[1]) for key in found):
        cells = (found.get((model, server, count)) for count in counts)
        table.add_row(model, _title(server), *("-" if cell is None else f"{cell:.2f}" for cell in cells))
    return table


def voided(records: list[dict[str, Any]]) -> Table:
    """Measurements that do not count, for their errors."""
    table = _table("Void: some requests failed", ["model", "server", "connections", "round", "errors", "of"])
    for record in records:
        if record["errors"]:
            fields = ("model", "server", "connections", "round", "errors", "requests")
            table.add_row(*(str(record[field]) for field in fields))
    return table


def rows(records: list[dict[str, Any]]) -> Table:
    """Time of a request with many rows."""
    times = medians(records, "median_ms", "model", "server")
    table = _table(f"One request with {records[0]['rows']:,} rows", ["model", "server", "ms", "ours / theirs"])
    for (model, server), value in times.items():
        mine = times.get((model, _OURS))
        share = "" if server == _OURS or mine is None else f"{mine / value:.2f}"
        table.add_row(model, _title(server), f"{value:.1f}", share)
    return table


def overhead(records: list[dict[str, Any]]) -> Table:
    """What serving adds to predict."""
    heads = ["model", "predict alone, ms", "through the endpoint, ms", "more, ms"]
    table = _table("One row, one connection: medians", heads)
    columns = [medians(records, field, "model") for field in ("bare_ms", "served_ms", "overhead_ms")]
    for key in columns[0]:
        table.add_row(key[0], *(f"{column[key]:.3f}" for column in columns if key in column))
    return table


def loading(records: list[dict[str, Any]]) -> Table:
    """A warm version beside one that loads."""
    heads = ["the load", "takes, s", "p99 idle, ms", "p99 meanwhile, ms", "ratio", "ms more", "samples", "errors"]
    table = _table("A warm version, 200 requests/s, while another version loads", heads)
    for record in records:
        idle, busy = record["idle_p99_ms"], record["loading_p99_ms"]
        figures = (f"{record['load_s']:.1f}", f"{idle:.2f}", f"{busy:.2f}", f"{busy / idle:.2f}", f"{busy - idle:.2f}")
        table.add_row(record["load"], *figures, str(record["samples"]), str(record["errors"]))
    return table


def affinity(records: list[dict[str, Any]]) -> Table:
    """Loads by replicas."""
    first = records[0]
    title = f"Loads of {first['versions']} versions, room for {first['room']}, {first['requests']:,} requests"
    table = _table(title, ["replicas", "affinity", "loads", "errors"])
    for record in records:
        affinity = "yes" if record["affinity"] else "no"
        fields = (str(record[field]) for field in ("loads", "errors"))
        table.add_row(str(record["replicas"]), affinity, *fields)
    return table


def memory(found: dict[str, Any]) -> Table:
    """One replica over many loads."""
    samples = found["samples"]
    table = _table(f"One replica over {found['loads']} loads and evictions", list(samples[0]))
    step = max(len(samples) // 10, 1)
    for sample in samples[step - 1 :: step]:
        table.add_row(*map(str, sample.values()))
    grown = (f"{found[f'{name}_growth']:+g}" for name in ("fds", "threads", "files"))
    table.add_row("growth", f"{found['rss_growth']:+.1%}", *grown)
    return table


def start(records: list[dict[str, Any]]) -> Table:
    """Time to the first answer."""
    table = _table("From the command to the first answer", ["server", "s"])
    for (server,), value in medians(records, "seconds", "server").items():
        table.add_row(_title(server), f"{value:.1f}")
    return table


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _connections(figures: dict[Any, float]) -> list[int]:
    return sorted({key[2] for key in figures})


def _title(server: str) -> str:
    return SERVERS[server].title if server in SERVERS else server
