"""Rows: the requests of one static batch, while ``generate`` goes on with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria

from registry_serve.generation import FinishReason, Likelihood, Settings, Tokens


@dataclass
class Asked:
    """A request that waits, or is generated.

    Attributes:
        told: where its tokens go; an exception ends them.
        wanted: whether somebody waits for them.
    """

    prompt: list[int]
    settings: Settings
    loop: asyncio.AbstractEventLoop
    told: asyncio.Queue[Tokens | Exception] = field(default_factory=asyncio.Queue)
    wanted: bool = True

    @property
    def group(self) -> tuple[Any, ...] | None:
        """What the requests of one call have in common; None goes alone."""
        asked = self.settings
        if asked.seed is not None:
            return None  # what is drawn depends on the neighbours
        # Beams are compared at the end: no row ends before the others.
        length = asked.max_new_tokens if asked.others.get("num_beams", 1) > 1 else None
        drawn = (asked.samples, asked.temperature, asked.top_p, asked.top_k, asked.ignore_eos, asked.logprobs)
        return (*drawn, length, tuple(sorted(asked.others.items())))

    def tell(self, what: Tokens | Exception) -> None:
        self.loop.call_soon_threadsafe(self.told.put_nowait, what)


class Rows(StoppingCriteria):
    """Sees every token as ``generate`` adds it: tells it, and ends the rows that are done or unwanted."""

    def __init__(self, batch: Sequence[Asked], eos: frozenset[int], before: int, *, tell: bool) -> None:
        self._batch = batch
        self._eos = eos
        self._before = before
        self._tell = tell
        self._done = [False] * len(batch)
        self._logprobs: torch.Tensor | None = None

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """See the probabilities of every step of a model, too, in this context."""

        def see(module: Any, given: Any, made: Any) -> None:
            self._logprobs = torch.log_softmax(made.logits[:, -1].float(), dim=-1)

        hook = model.register_forward_hook(see)
        try:
            yield
        finally:
            hook.remove()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Look at the last column. Shapes: (rows, tokens), returns (rows,): which rows end here."""
        if not self._tell:
            unwanted = not any(asked.wanted for asked in self._batch)
            return torch.full((input_ids.shape[0],), unwanted, device=input_ids.device)
        count = input_ids.shape[1] - self._before
        for place, (asked, token) in enumerate(zip(self._batch, input_ids[:, -1].tolist(), strict=True)):
            if not self._done[place]:
                self._done[place] = self._add(place, asked, token, count)
        return torch.tensor(self._done, device=input_ids.device)

    def end(self) -> None:
        """Tell the end of the rows that ``generate`` has ended by itself: for a ``max_time`` of the model's, say."""
        for asked, done in zip(self._batch, self._done, strict=True):
            if self._tell and not done:
                asked.tell(Tokens((), "length"))

    def _add(self, place: int, asked: Asked, token: int, count: int) -> bool:
        if not asked.wanted:
            return True
        if token in self._eos and not asked.settings.ignore_eos:
            asked.tell(Tokens((), "stop"))
            return True
        full = count >= asked.settings.max_new_tokens
        reason: FinishReason | None = "length" if full else None
        if self._logprobs is None or asked.settings.logprobs is None:
            asked.tell(Tokens((token,), reason))
        else:
            own, most = _likelihoods(self._logprobs[place], token, asked.settings.logprobs)
            asked.tell(Tokens((token,), reason, (own,), (most,)))
        return full


def _likelihoods(logprobs: torch.Tensor, token: int, most: int) -> tuple[float, tuple[Likelihood, ...]]:
    """Return the log probability of a token, and the likeliest tokens. Shape: (vocabulary,)."""
    values, ids = logprobs.topk(min(most, logprobs.shape[-1]))
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)
    return float(logprobs[token]), tuple(Likelihood(*each) for each in likeliest)
