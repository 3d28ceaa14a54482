"""One process that generates, and several: each with an engine of its own, and its share of the clients."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from benchmarks.generation.clients import Answered, in_turn
from benchmarks.generation.lengths import Asked
from benchmarks.generation.models import Shape, running

_WATCHED_EACH_S = 0.5
_END_S = 10


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
        told.put((self.number, asyncio.run(self._ask(begin))))

    async def _ask(self, begin: Any) -> list[Answered]:
        with running(self.engine, self.shape.model(self.device), self.shape) as engine:
            await in_turn(engine, self.requests[:1], 1)
            await asyncio.to_thread(begin.wait)
            return await in_turn(engine, self.requests, self.clients)


def answers_of(
    count: int, engine: str, shape: Shape, device: str, threads: int, requests: Sequence[Asked], clients: int
) -> list[Answered]:
    """Divide requests and clients among so many processes, and return all answers.

    Raises:
        RuntimeError: a process has ended without an answer; its error is on the terminal.
    """
    context = multiprocessing.get_context("spawn")
    begin, told = context.Barrier(count), context.Queue()
    processes = [
        context.Process(
            target=Replica(
                number, engine, shape, device, threads, requests[number::count], max(1, clients // count)
            ).run,
            args=(begin, told),
        )
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        return _collected(processes, told)
    finally:
        for process in processes:
            process.terminate()
            process.join(_END_S)
            process.kill()
            process.join()


def _collected(processes: Sequence[SpawnProcess], told: Any) -> list[Answered]:
    """Wait for the answers of all, however long they take, as long as none of them ends without."""
    answers: dict[int, list[Answered]] = {}
    while len(answers) < len(processes):
        ended = [number for number, each in enumerate(processes) if number not in answers and not each.is_alive()]
        try:
            number, its = told.get(timeout=_WATCHED_EACH_S)
            answers[number] = its
        except queue.Empty:  # what a process told before it ended would be here
            if ended:
                code = processes[ended[0]].exitcode
                raise RuntimeError(f"process {ended[0]} has ended with {code} and told nothing") from None
    return [each for number in sorted(answers) for each in answers[number]]
