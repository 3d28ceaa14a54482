"""One process that generates, and several: each with an engine of its own, and its share of the clients."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.generation.clients import Answered, in_turn
from benchmarks.generation.lengths import Asked
from benchmarks.generation.models import Shape, running

_PATIENCE_S = 300


@dataclass(frozen=True)
class Replica:
    """What a process does.

    Attributes:
        number: of the process, from 0; with a GPU, also which.
        engine: its name.
        shape: of the model.
        device: ``cpu`` or ``cuda``.
        threads: that compute, on a CPU.
        requests: its share.
        clients: that send them.
    """

    number: int
    engine: str
    shape: Shape
    device: str
    threads: int
    requests: Sequence[Asked]
    clients: int

    def run(self, begin: Any, told: Any) -> None:
        """Get ready, wait until all others are, ask, and tell the answers."""
        if self.device == "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = str(self.number)
        torch.set_num_threads(self.threads)
        told.put(asyncio.run(self._ask(begin)))

    async def _ask(self, begin: Any) -> list[Answered]:
        with running(self.engine, self.shape.model(self.device), self.shape) as engine:
            await in_turn(engine, self.requests[:1], 1)
            await asyncio.to_thread(begin.wait, _PATIENCE_S)
            return await in_turn(engine, self.requests, self.clients)


def answers_of(
    count: int, engine: str, shape: Shape, device: str, threads: int, requests: Sequence[Asked], clients: int
) -> list[Answered]:
    """Divide requests and clients among so many processes, and return all answers.

    Raises:
        queue.Empty: a process has not answered; its error is on the terminal.
    """
    context = multiprocessing.get_context("spawn")
    begin, told = context.Barrier(count), context.Queue()
    processes = [
        context.Process(
            target=Replica(
                number, engine, shape, device, threads, requests[number::count], max(1, clients // count)
            ).run,
            args=(begin, told),
            daemon=True,
        )
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        return [each for _ in processes for each in told.get(timeout=_PATIENCE_S)]
    finally:
        for process in processes:
            process.terminate()
            process.join()
