"""The measurements: all engines, one after the other, get the same requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.generation import lengths
from benchmarks.generation.clients import by_chance, in_turn
from benchmarks.generation.figures import TOKENS_PER_S, effective, summary
from benchmarks.generation.lengths import Asked, drawn
from benchmarks.generation.models import Shape, free, running
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
Records = list[dict[str, Any]]
Found = dict[str, Records]


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


async def measure(plan: Plan, tell: Tell) -> Found:
    """Measure everything; records by the name of the measurement. Those of ``failed`` say what could not be."""
    torch.set_num_threads(plan.threads)
    found: Found = {"clients": [], "at_once": [], "by_chance": [], "replicas": [], "failed": []}
    await _each_alone(plan, found, tell)
    free()
    for name in plan.engines:
        for count in plan.replicas:
            with _kept_going(found, tell, name, f"processes: {count}"):
                _keep(found["replicas"], tell, await asyncio.to_thread(_replicas, plan, name, count))
    return found


async def _each_alone(plan: Plan, found: Found, tell: Tell) -> None:
    """Measure one engine after the other in this process. None leaves its cache in the memory of the next."""
    model = plan.shape.model(plan.device)
    for name in sorted(plan.engines, key=lambda each: each != _MEASURE):
        with _kept_going(found, tell, name, "in one process"):
            await _alone(plan, name, model, found, tell)
        free()


async def _alone(plan: Plan, name: str, model: Any, found: Found, tell: Tell) -> None:
    with running(name, model, plan.shape) as engine:
        await in_turn(engine, drawn(plan.shape, 2, lengths.equal, 4), 1)
        for clients in CLIENTS:
            answers = await in_turn(engine, _for(plan, clients), clients)
            _keep(found["clients"], tell, {"engine": name, "clients": clients, **summary(answers)})
        if name == "one":  # it waits for nobody: the more are asked at once, the longer it takes
            return
        for kind, distribution in _DISTRIBUTIONS.items():
            requests = drawn(plan.shape, plan.requests, distribution, plan.shape.long)
            answers = await in_turn(engine, requests, len(requests))
            _keep(found["at_once"], tell, {"engine": name, "answers": kind, **summary(answers)})
        per_second = _load(found["at_once"])
        if per_second is not None:
            requests = drawn(plan.shape, plan.requests // 2, lengths.exponential, plan.shape.long, seed=1)
            answers = await by_chance(engine, requests, per_second)
            _keep(found["by_chance"], tell, {"engine": name, "load": round(per_second, 3), **summary(answers)})


def _load(records: Records) -> float | None:
    """Return how many requests arrive per second; None where the measure has not been taken."""
    taken = [each for each in records if (each["engine"], each["answers"]) == (_MEASURE, "exponential")]
    return LOAD * taken[0]["requests_per_s"] if taken else None


@contextmanager
def _kept_going(found: Found, tell: Tell, engine: str, what: str) -> Iterator[None]:
    """Note an engine's failure instead of losing what was measured before it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever an engine does
        said = " ".join(f"{type(error).__name__}: {error}".split())
        _keep(found["failed"], tell, {"engine": engine, "what": what, "error": said})


def _replicas(plan: Plan, name: str, count: int) -> dict[str, Any]:
    clients = CLIENTS[-1]
    requests = _for(plan, clients)
    answers = answers_of(count, name, plan.shape, plan.device, plan.threads, requests, clients)
    kept = {f"effective_at_{rate}": effective(answers, rate) for rate in TOKENS_PER_S}
    return {"engine": name, "replicas": count, "clients": clients, **summary(answers), **kept}


def _for(plan: Plan, clients: int) -> list[Asked]:
    count = max(2 * clients, min(plan.requests // 2, 12 * clients))
    # Others for each number of clients: an engine may remember prompts that it has read.
    return drawn(plan.shape, count, lengths.similar, plan.shape.answer, seed=clients)


def _keep(records: Records, tell: Tell, record: dict[str, Any]) -> None:
    records.append(record)
    tell("  ".join(f"{name} {value}" for name, value in record.items()))
