"""The measurements: all engines, one after the other, get the same requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.generation import lengths
from benchmarks.generation.clients import by_chance, in_turn
from benchmarks.generation.figures import TOKENS_PER_S, effective, summary
from benchmarks.generation.lengths import Asked, drawn
from benchmarks.generation.models import Shape, running
from benchmarks.generation.replicas import answers_of

CLIENTS = (1, 8, 32)
LOAD = 0.7
#: Whose throughput is the load's measure.
_MEASURE = "static"
_DISTRIBUTIONS: dict[str, lengths.Lengths] = {
    "exponential": lengths.exponential,
    "similar": lengths.similar,
    "equal": lengths.equal,
}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        shape: of the model.
        device: ``cpu`` or ``cuda``.
        threads: of each process that computes, on a CPU.
        engines: their names.
        requests: at once, or by chance; fewer where there are few clients.
        replicas: numbers of processes.
    """

    shape: Shape
    device: str
    threads: int
    engines: Sequence[str]
    requests: int
    replicas: Sequence[int]


async def measure(plan: Plan, tell: Tell) -> dict[str, list[dict[str, Any]]]:
    """Measure everything; records by the name of the measurement."""
    torch.set_num_threads(plan.threads)
    model = plan.shape.model(plan.device)
    found: dict[str, list[dict[str, Any]]] = {"clients": [], "at_once": [], "by_chance": [], "replicas": []}
    per_second: float | None = None
    for name in sorted(plan.engines, key=lambda each: each != _MEASURE):
        with running(name, model, plan.shape) as engine:
            await in_turn(engine, drawn(plan.shape, 2, lengths.equal, 4), 1)
            for clients in CLIENTS:
                answers = await in_turn(engine, _for(plan, clients), clients)
                _keep(found["clients"], tell, {"engine": name, "clients": clients, **summary(answers)})
            if name == "one":  # it waits for nobody: the more are asked at once, the longer it takes
                continue
            for kind, distribution in _DISTRIBUTIONS.items():
                requests = drawn(plan.shape, plan.requests, distribution, plan.shape.long)
                answers = await in_turn(engine, requests, len(requests))
                record = {"engine": name, "answers": kind, **summary(answers)}
                _keep(found["at_once"], tell, record)
                if name == _MEASURE and kind == "exponential":
                    per_second = LOAD * record["requests_per_s"]
            if per_second is not None:
                requests = drawn(plan.shape, plan.requests // 2, lengths.exponential, plan.shape.long, seed=1)
                answers = await by_chance(engine, requests, per_second)
                _keep(found["by_chance"], tell, {"engine": name, "load": round(per_second, 3), **summary(answers)})
    del model
    for name in plan.engines:
        for count in plan.replicas:
            _keep(found["replicas"], tell, await asyncio.to_thread(_replicas, plan, name, count))
    return found


def _replicas(plan: Plan, name: str, count: int) -> dict[str, Any]:
    clients = CLIENTS[-1]
    requests = _for(plan, clients)
    answers = answers_of(count, name, plan.shape, plan.device, plan.threads, requests, clients)
    kept = {f"effective_at_{rate}": effective(answers, rate) for rate in TOKENS_PER_S}
    return {"engine": name, "replicas": count, "clients": clients, **summary(answers), **kept}


def _for(plan: Plan, clients: int) -> list[Asked]:
    count = max(2 * clients, min(plan.requests // 2, 12 * clients))
    return drawn(plan.shape, count, lengths.similar, plan.shape.answer)


def _keep(records: list[dict[str, Any]], tell: Tell, record: dict[str, Any]) -> None:
    records.append(record)
    tell("  ".join(f"{name} {value}" for name, value in record.items()))
