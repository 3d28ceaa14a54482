"""Arithmetic: what the times of many answers come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.figures import percentile
from benchmarks.generation.clients import Answered

#: DeepSpeed-MII's promises: so many tokens of a prompt are read per second, and so many of an answer come per second.
PROMPT_TOKENS_PER_S = 512
TOKENS_PER_S = (2, 4, 6)
#: A moving average over about so many tokens decides about the latter.
_SPAN = 16


def summary(answers: Sequence[Answered]) -> dict[str, Any]:
    """Return throughput and percentiles."""
    seconds = lasted(answers)
    gaps = [gap for each in answers for gap in each.gaps_s]
    return {
        "requests": len(answers),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(answers) / seconds, 3),
        "tokens_per_s": round(sum(len(each.times) for each in answers) / seconds, 1),
        "first_p50_ms": percentile([1000 * each.first_s for each in answers], 50),
        "first_p95_ms": percentile([1000 * each.first_s for each in answers], 95),
        "gap_p95_ms": percentile([1000 * gap for gap in gaps], 95) if gaps else None,
    }


def lasted(answers: Sequence[Answered]) -> float:
    """Return the seconds from the first request to the last token."""
    return max(each.times[-1] for each in answers) - min(each.asked_at for each in answers)


def effective(answers: Sequence[Answered], tokens_per_s: float) -> float:
    """Return how many requests per second keep both promises: effective throughput, as DeepSpeed-MII calls it."""
    return round(sum(kept(each, tokens_per_s) for each in answers) / lasted(answers), 3)


def kept(answered: Answered, tokens_per_s: float) -> bool:
    """Say whether the prompt was read in time, and the answer never came slower than so many tokens per second."""
    in_time = answered.first_s <= answered.prompt / PROMPT_TOKENS_PER_S
    return in_time and slowest(answered.gaps_s) <= 1 / tokens_per_s


def slowest(gaps: Sequence[float]) -> float:
    """Return the highest that the exponential moving average of times between tokens ever is; 0 of none."""
    weight = 2 / (_SPAN + 1)
    average = highest = gaps[0] if gaps else 0.0
    for gap in gaps[1:]:
        average = weight * gap + (1 - weight) * average
        highest = max(highest, average)
    return highest
