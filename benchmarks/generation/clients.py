"""Clients that ask an engine, and write down when each token comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.generation.lengths import Asked
from registry_serve.generation import Engine, Settings


@dataclass
class Answered:
    """When things happened to a request, in seconds of the system's monotonic clock.

    Attributes:
        prompt: how many tokens it has.
        asked_at: when it was sent.
        times: when each token came.
    """

    prompt: int
    asked_at: float
    times: list[float] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """Until the first token."""
        return self.times[0] - self.asked_at

    @property
    def gaps_s(self) -> list[float]:
        """Between a token and the next."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


async def ask(engine: Engine, asked: Asked) -> Answered:
    """Send a request and wait for its answer.

    Raises:
        RuntimeError: the answer is not as long as asked for.
    """
    answered = Answered(len(asked.prompt), time.perf_counter())
    async for tokens in engine.submit(list(asked.prompt), Settings(asked.new_tokens, ignore_eos=True)):
        answered.times += [time.perf_counter()] * len(tokens.ids)
    if len(answered.times) != asked.new_tokens:
        raise RuntimeError(f"{engine.name} told {len(answered.times)} tokens where {asked.new_tokens} were asked for.")
    return answered


async def in_turn(engine: Engine, requests: Sequence[Asked], clients: int) -> list[Answered]:
    """Let some clients ask, each its next request when it has the last answer; as many as requests ask all at once."""
    left = iter(requests)
    answers: list[Answered] = []

    async def client() -> None:
        for asked in left:
            answers.append(await ask(engine, asked))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def by_chance(engine: Engine, requests: Sequence[Asked], per_second: float, seed: int = 0) -> list[Answered]:
    """Send requests whether others are answered or not: independently, so many per second on average."""
    pauses = np.random.default_rng(seed).exponential(1 / per_second, len(requests))
    due = time.perf_counter()
    waiting = []
    for asked, pause in zip(requests, pauses, strict=True):
        due += pause
        await asyncio.sleep(max(0, due - time.perf_counter()))
        waiting.append(asyncio.ensure_future(ask(engine, asked)))
    return await asyncio.gather(*waiting)
