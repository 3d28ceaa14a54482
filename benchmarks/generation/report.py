"""Tables, and what goes into the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.generation.figures import TOKENS_PER_S
from benchmarks.generation.models import TITLES
from benchmarks.report import markdown

Records = list[dict[str, Any]]

#: Around what ``publish`` writes into docs/generation.md.
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
#: Of an error, in characters; the raw results have all of it.
_LONGEST = 200


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the tables of what was measured."""
    results = found["results"]
    made = [
        clients(results["clients"]),
        at_once(results["at_once"]),
        by_chance(results["by_chance"]),
        replicas(results["replicas"]),
        failed(results["failed"]),
    ]
    return [table for table in made if table.row_count]


def clients(records: Records) -> Table:
    """All figures, by engine and number of clients."""
    table = _table("Clients that wait for their answers; answers of similar length", "engine", "clients")
    _columns(table, "requests/s", "tokens/s", "first token, p95 ms", "between tokens, p95 ms")
    for each in records:
        table.add_row(
            TITLES[each["engine"]],
            str(each["clients"]),
            f"{each['requests_per_s']:.2f}",
            f"{each['tokens_per_s']:,.0f}",
            f"{each['first_p95_ms']:,.0f}",
            f"{each['gap_p95_ms']:,.1f}",
        )
    return table


def at_once(records: Records) -> Table:
    """Throughput, by engine and distribution of lengths, and how the engines compare."""
    title = "All requests at once: useful tokens per second"
    table = _table(title, "length of answers")
    engines = list(dict.fromkeys(each["engine"] for each in records))
    _columns(table, *(TITLES[each] for each in engines), "continuous / static")
    rates = {(each["answers"], each["engine"]): each["tokens_per_s"] for each in records}
    for kind in dict.fromkeys(each["answers"] for each in records):
        ours, theirs = rates.get((kind, "continuous")), rates.get((kind, "static"))
        ratio = f"{ours / theirs:.2f}" if ours and theirs else "-"
        table.add_row(kind, *(_rate(rates.get((kind, each))) for each in engines), ratio)
    return table


def by_chance(records: Records) -> Table:
    """Waiting for the first token, by engine."""
    load = f"{records[0]['load']:.2f}" if records else "0"
    title = f"Arrivals by chance, {load} per second: 70 % of what static batches answer; exponential lengths"
    table = _table(title, "engine")
    _columns(table, "requests/s", "first token, p50 ms", "first token, p95 ms", "between tokens, p95 ms")
    for each in records:
        table.add_row(
            TITLES[each["engine"]],
            f"{each['requests_per_s']:.2f}",
            f"{each['first_p50_ms']:,.0f}",
            f"{each['first_p95_ms']:,.0f}",
            f"{each['gap_p95_ms']:,.1f}",
        )
    return table


def replicas(records: Records) -> Table:
    """Requests per second, and those that keep the promises."""
    table = _table(
        "Effective throughput, 32 clients, processes of their own: requests per second that keep the promises",
        "engine",
        "processes",
    )
    _columns(table, "all requests/s", *(f"at {rate} tokens/s" for rate in TOKENS_PER_S))
    for each in records:
        table.add_row(
            TITLES[each["engine"]],
            str(each["replicas"]),
            f"{each['requests_per_s']:.2f}",
            *(f"{each[f'effective_at_{rate}']:.2f}" for rate in TOKENS_PER_S),
        )
    return table


def failed(records: Records) -> Table:
    """What could not be measured, and why."""
    table = _table("Not measured", "engine", "where", "error")
    for each in records:
        table.add_row(TITLES[each["engine"]], each["what"], Text(each["error"][:_LONGEST]))
    return table


def publish(found: dict[str, Any], docs: Path) -> None:
    """Write the raw results beside the page, and the tables into it."""
    raw, page = docs / "generation.json", docs / "generation.md"
    raw.write_text(json.dumps(found, indent=1) + "\n")
    before, _, rest = page.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    written = "\n\n".join([_made_with(found), *map(markdown, tables(found))])
    page.write_text(f"{before}{_BEGIN}\n\n{written}\n\n{_END}{after}")


def _made_with(found: dict[str, Any]) -> str:
    machine, versions, shape = found["machine"], found["versions"], found["settings"]["shape"]
    device = found["device"] or f"{found['settings']['threads']} of {machine['cores']} cores ({machine['processor']})"
    return (
        f"Measured on {found['date'][:10]} on {device}: a Llama of {shape['layers']} layers of {shape['hidden']}, "
        f"{shape['vocabulary']:,} tokens; prompts of {shape['prompt']} tokens on average, answers of {shape['answer']} "
        f"where clients wait, else of {shape['long']}. Torch {versions['torch']}, Transformers "
        f"{versions['transformers']}, commit {versions['commit']}. Raw results: [generation.json](generation.json)."
    )


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.0f}"


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for head in heads:
        table.add_column(head)
    return table


def _columns(table: Table, *heads: str) -> None:
    for head in heads:
        table.add_column(head, justify="right")
