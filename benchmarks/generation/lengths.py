"""How long prompts and answers are. The same seed draws the same requests, for whichever engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.generation.models import Shape

#: Lengths that differ little: their standard deviation as a share of the mean.
SPREAD = 0.3


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        prompt: its tokens.
        new_tokens: how many the answer has.
    """

    prompt: tuple[int, ...]
    new_tokens: int


def similar(random: np.random.Generator, mean: int, count: int) -> np.ndarray:
    """Draw from a normal distribution."""
    return random.normal(mean, SPREAD * mean, count)


def exponential(random: np.random.Generator, mean: int, count: int) -> np.ndarray:
    """Draw lengths of which some are many times the mean, as those of real answers."""
    return random.exponential(mean, count)


def equal(random: np.random.Generator, mean: int, count: int) -> np.ndarray:
    """Return the mean for all."""
    return np.full(count, float(mean))


Lengths = Callable[[np.random.Generator, int, int], np.ndarray]


def drawn(shape: Shape, count: int, answers: Lengths, mean: int, seed: int = 0) -> list[Asked]:
    """Draw requests that fit into a model's context.

    Args:
        shape: of the model.
        count: how many.
        answers: how the lengths of answers are distributed.
        mean: of those lengths.
        seed: decides about everything.
    """
    random = np.random.default_rng(seed)
    prompts = whole(similar(random, shape.prompt, count), shape.context // 2)
    news = whole(answers(random, mean, count), shape.context // 2)
    return [
        Asked(tuple(random.integers(1, shape.vocabulary, length).tolist()), new)
        for length, new in zip(prompts, news, strict=True)
    ]


def whole(lengths: np.ndarray, most: int) -> list[int]:
    """Return them as numbers of tokens, at least one."""
    return [int(each) for each in np.clip(np.rint(lengths), 1, most)]
