"""The command line of the benchmarks."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import environments, registry, results
from benchmarks.dialects import WORKLOADS
from benchmarks.places import WORK
from benchmarks.servers import SERVERS, Server

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)

RESULTS = WORK / "results"
QUICK_RESULTS = WORK / "results-quick"
ALL_SERVERS = ",".join(SERVERS)

ServerNames = Annotated[str, typer.Option("--servers", help=f"Comma-separated: {', '.join(SERVERS)}.")]
ModelNames = Annotated[str, typer.Option("--models", help=f"Comma-separated: {', '.join(WORKLOADS)}.")]
Rounds = Annotated[int, typer.Option(help="Each round starts every server once.")]
Folder = Annotated[Path, typer.Option("--results", help="Where the raw results go.")]


@app.callback()
def benchmarks(context: typer.Context) -> None:
    """Measure registry_serve beside an empty endpoint and beside other model servers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if context.invoked_subcommand not in ("environments", "report"):
        registry.build()


@app.command()
def throughput(
    servers: ServerNames = ALL_SERVERS,
    models: ModelNames = "text,iris",
    connections: Annotated[str, typer.Option(help="Comma-separated numbers.")] = "1,16,64",
    seconds: Annotated[float, typer.Option(help="Of each measurement, after two seconds of warm-up.")] = 5,
    rounds: Rounds = 3,
    folder: Folder = RESULTS,
) -> None:
    """Requests per second and latency of one row."""
    from benchmarks.throughput import measure

    counts = [int(count) for count in connections.split(",")]
    found = []
    for model in models.split(","):
        found += measure(_chosen(servers, model), WORKLOADS[model], counts, seconds, rounds, console.print)
    _keep(folder, "throughput", {"seconds": seconds, "rounds": rounds}, found)


@app.command()
def rows(
    servers: ServerNames = ALL_SERVERS,
    models: ModelNames = "text,iris",
    repeats: Annotated[int, typer.Option(help="Requests in each round, after five that do not count.")] = 30,
    rounds: Rounds = 3,
    folder: Folder = RESULTS,
) -> None:
    """Time of one request with 1,000 rows."""
    from benchmarks.rows import measure

    found = []
    for model in models.split(","):
        many = [server for server in _chosen(servers, model) if server.many_rows]
        found += measure(many, WORKLOADS[model], repeats, rounds, console.print)
    _keep(folder, "rows", {"repeats": repeats, "rounds": rounds}, found)


@app.command()
def overhead(
    models: ModelNames = "text,iris", seconds: float = 5, rounds: Rounds = 3, folder: Folder = RESULTS
) -> None:
    """What serving adds to the model's own predict."""
    from benchmarks.overhead import measure

    found = [
        record for model in models.split(",") for record in measure(WORKLOADS[model], seconds, rounds, console.print)
    ]
    _keep(folder, "overhead", {"seconds": seconds, "rounds": rounds}, found)


@app.command()
def loading(loads: Annotated[int, typer.Option(help="Of each kind.")] = 6, folder: Folder = RESULTS) -> None:
    """Latency of a warm version while another one loads."""
    from benchmarks.loading import measure

    _keep(folder, "loading", {"loads": loads}, measure(loads, console.print))


@app.command()
def affinity(
    replicas: Annotated[str, typer.Option(help="Comma-separated numbers.")] = "1,2,3",
    requests: int = 4000,
    clients: Annotated[int, typer.Option(help="Requests under way at a time.")] = 4,
    folder: Folder = RESULTS,
) -> None:
    """Loads, with 40 versions and room for 24 in each replica."""
    from benchmarks.affinity import measure

    found = measure([int(count) for count in replicas.split(",")], requests, clients, console.print)
    _keep(folder, "affinity", {"requests": requests, "clients": clients}, found)


@app.command()
def memory(loads: int = 500, folder: Folder = RESULTS) -> None:
    """Memory, descriptors, threads and files over many loads and evictions."""
    from benchmarks.memory import measure

    found = measure(loads, console.print)
    console.print(", ".join(f"{name} {value}" for name, value in found.items() if name != "samples"))
    _keep(folder, "memory", {"loads": loads}, found)


@app.command()
def start(servers: ServerNames = ALL_SERVERS, rounds: Rounds = 3, folder: Folder = RESULTS) -> None:
    """Time from the command to the first answer."""
    from benchmarks.start import measure

    _keep(
        folder, "start", {"rounds": rounds}, measure(_chosen(servers, "text"), WORKLOADS["text"], rounds, console.print)
    )


@app.command("environments")
def build_environments() -> None:
    """Build the peers' environments: some minutes, once."""
    for name in environments.PACKAGES:
        console.print(f"Environment {name}: {', '.join(environments.PACKAGES[name])}")
        environments.build(name)


@app.command()
def report(
    folder: Folder = RESULTS,
    docs: Annotated[Path | None, typer.Option(help="Folder of benchmarks.md, .json and .png.")] = None,
) -> None:
    """Print the tables; with --docs, write tables, chart and raw results there."""
    from benchmarks.report import publish, tables

    found = results.read(folder)
    for table in tables(found):
        console.print(table)
    if docs is not None:
        publish(found, docs)


@app.command("all")
def everything(docs: Annotated[Path | None, typer.Option()] = None) -> None:
    """Every measurement in full, then the report: about an hour."""
    build_environments()
    for measurement in (throughput, rows, overhead, loading, affinity, memory, start):
        measurement()
    report(RESULTS, docs)


@app.command()
def quick() -> None:
    """Take a short form of every measurement, about five minutes; peers only if their environments are there."""
    there = [name for name in ("mlflow", "mlserver", "litserve", "bentoml") if environments.exists(name)]
    if len(there) < 4:
        console.print(f"Peers without an environment are left out (make bench builds them); there: {there or 'none'}.")
    begin = time.monotonic()
    peers = ",".join(there)
    throughput(
        ",".join(filter(None, ("ours,empty-fastapi,straightforward", peers))), "text", "1,16,64", 2, 1, QUICK_RESULTS
    )
    rows(",".join(filter(None, ("ours", "mlflow" if "mlflow" in there else ""))), "text", 10, 1, QUICK_RESULTS)
    overhead("text", 2, 1, QUICK_RESULTS)
    loading(1, QUICK_RESULTS)
    affinity("3", 1000, 4, QUICK_RESULTS)
    memory(100, QUICK_RESULTS)
    report(QUICK_RESULTS)
    console.print(
        f"It took {(time.monotonic() - begin) / 60:.1f} minutes. One short round: look at orders of magnitude."
    )


def _chosen(servers: str, model: str) -> list[Server]:
    """Return the servers that are named and can serve a model; peers need their environment.

    Raises:
        BadParameter: a name that is none, or an environment that is not there.
    """
    names = servers.split(",")
    unknown = [name for name in names if name not in SERVERS]
    if unknown:
        raise typer.BadParameter(f"No such server: {', '.join(unknown)}. There are: {', '.join(SERVERS)}.")
    chosen = [SERVERS[name] for name in names if model in SERVERS[name].dialects]
    missing = {
        server.environment for server in chosen if server.environment and not environments.exists(server.environment)
    }
    if missing:
        raise typer.BadParameter(f"No environment for {', '.join(sorted(missing))}: python -m benchmarks environments.")
    return chosen


def _keep(folder: Path, measurement: str, settings: dict[str, Any], found: Any) -> None:
    results.write(folder, measurement, settings, found)
    console.print(f"Raw results: {folder / measurement}.json")
