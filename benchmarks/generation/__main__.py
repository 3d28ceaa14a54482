"""``python -m benchmarks.generation``."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import results
from benchmarks.generation.models import ENGINES, Shape
from benchmarks.generation.report import publish, tables
from benchmarks.generation.rounds import Plan, measure

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def generation(
    hidden: Annotated[int | None, typer.Option(help="Size of the model's vectors; as the device allows.")] = None,
    layers: Annotated[int | None, typer.Option(help="Of the model.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Tokens that the model knows.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")] = None,
    threads: Annotated[int, typer.Option(help="That compute, on a CPU.")] = 1,
    requests: Annotated[int, typer.Option(help="Of the largest measurements.")] = 192,
    engines: Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(ENGINES)}.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of the requests, one process: some two minutes.")
    ] = False,
    docs: Annotated[Path | None, typer.Option(help="Folder of generation.md and .json.")] = None,
) -> None:
    """Measure the engines of text generation side by side, on a model of random weights."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    several = device == "cpu" or torch.cuda.device_count() > 1
    plan = Plan(
        Shape.of(device, hidden, layers, vocab),
        device,
        threads,
        _chosen(engines, device),
        requests // 4 if quick else requests,
        () if quick else (1, 2) if several else (1,),
    )
    began = time.monotonic()
    found = {**_circumstances(plan), "results": asyncio.run(measure(plan, console.print))}
    for table in tables(found):
        console.print(table)
    console.print(f"It took {(time.monotonic() - began) / 60:.1f} minutes.")
    if docs is not None:
        publish(found, docs)
    if found["results"]["failed"]:
        raise typer.Exit(1)


def _chosen(names: str | None, device: str) -> list[str]:
    if names is None:
        there = device == "cuda" and importlib.util.find_spec("vllm") is not None
        return [name for name in ENGINES if name != "vllm" or there]
    unknown = [name for name in names.split(",") if name not in ENGINES]
    if unknown:
        raise typer.BadParameter(f"No such engine: {', '.join(unknown)}. There are: {', '.join(ENGINES)}.")
    return names.split(",")


def _circumstances(plan: Plan) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": results.machine(),
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        | {"commit": results.commit()},
        "settings": dataclasses.asdict(plan),
    }


if __name__ == "__main__":
    app()
