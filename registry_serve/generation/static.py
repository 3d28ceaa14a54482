"""The engine for what continuous batching cannot do: encoder-decoders, beam search, penalties, seeds, probabilities.

Requests that have gathered while the model was busy go through ``generate`` together, where their settings are the
same; the longest answer decides when the next can begin. Tokens are told as they come, but for beams and probabilities.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from registry_serve.generation import EngineFailed, Likelihood, RequestTooLarge, Settings, Tokens
from registry_serve.generation.precision import Precision
from registry_serve.generation.prompts import padded

T = TypeVar("T")


@dataclass
class _Asked:
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
        # Beams are compared at the end, and rows with probabilities are told then: no row ends before the others.
        length = asked.max_new_tokens if asked.logprobs is not None or asked.others.get("num_beams", 1) > 1 else None
        drawn = (asked.samples, asked.temperature, asked.top_p, asked.top_k, asked.ignore_eos, asked.logprobs)
        return (*drawn, length, tuple(sorted(asked.others.items())))

    def tell(self, what: Tokens | Exception) -> None:
        self.loop.call_soon_threadsafe(self.told.put_nowait, what)


class StaticEngine:
    """Answers requests in batches, one batch after the other.

    Attributes:
        name: ``static``.
        model: of Transformers.

    Args:
        model: of Transformers.
        precision: that it computes with.
        padding: the token to pad with.
        eos: tokens that end an answer.
        encodes: whether an encoder reads the prompt.
        largest: requests that go together at the most.
    """

    name = "static"
    capacity = None
    lost = False

    def __init__(
        self, model: Any, precision: Precision, padding: int, eos: Sequence[int], *, encodes: bool, largest: int = 32
    ) -> None:
        self.model = model
        self._precision = precision
        self._padding = padding
        self._eos = frozenset(eos)
        self._encodes = encodes
        self._largest = largest
        self._queue: deque[_Asked] = deque()
        self._working: asyncio.Task[None] | None = None
        self._batch: Sequence[_Asked] = ()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    def takes(self, settings: Settings) -> bool:
        """Say whether it can generate like this: always."""
        return True

    def status(self) -> Mapping[str, Any]:
        """Return what it does, ready for JSON."""
        return {"engine": self.name, "answering": len(self._batch), "waiting": len(self._queue)}

    async def submit(self, prompt: list[int], settings: Settings) -> AsyncGenerator[Tokens, None]:
        """Generate one answer; see :class:`registry_serve.generation.Engine`."""
        asked = _Asked(prompt, settings, asyncio.get_running_loop())
        self._queue.append(asked)
        if self._working is None or self._working.done():
            self._working = asyncio.get_running_loop().create_task(self._work())
        try:
            while True:
                told = await asked.told.get()
                if isinstance(told, Exception):
                    raise told
                yield told
                if told.finish_reason is not None:
                    return
        finally:
            asked.wanted = False

    async def alone(self, work: Callable[[], T]) -> T:
        """Do something else with the model, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Let the thread end with what it generates."""
        for asked in (*self._batch, *self._queue):
            asked.wanted = False
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while batch := self._next():
            self._batch = batch
            try:
                await self.alone(lambda batch=batch: self._generate(batch))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - told to those who wait
                failed = error if isinstance(error, RequestTooLarge) else EngineFailed("generate raised an error")
                failed.__cause__ = None if failed is error else error
                for asked in batch:
                    asked.tell(failed)
            finally:
                self._batch = ()

    def _next(self) -> list[_Asked]:
        """Take the oldest request out of the queue, and those that may share a call with it."""
        while self._queue and not self._queue[0].wanted:
            self._queue.popleft()
        if not self._queue:
            return []
        first = self._queue.popleft()
        batch, left = [first], deque[_Asked]()
        for asked in self._queue:
            fits = len(batch) < self._largest and first.group is not None and asked.group == first.group
            if fits and asked.wanted:
                batch.append(asked)
            elif asked.wanted:
                left.append(asked)
        self._queue = left
        return batch

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _generate(self, batch: Sequence[_Asked]) -> None:
        settings = batch[0].settings
        side = "right" if self._encodes else "left"
        tokens = padded([each.prompt for each in batch], self._padding, side, self.model.device)
        # What an encoder-decoder returns begins with its start token, and holds nothing of the prompt.
        before = 1 if self._encodes else tokens["input_ids"].shape[1]
        at_the_end = settings.logprobs is not None or settings.others.get("num_beams", 1) > 1
        rows = _Rows(batch, self._eos, before, tell=not at_the_end)
        config = self._configured(settings, max(each.settings.max_new_tokens for each in batch))
        with torch.inference_mode(), self._precision.autocasting(), seeded(settings.seed):
            made = self.model.generate(
                **tokens,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([rows]),
            )
        rows.end()
        if at_the_end:
            for place, asked in enumerate(batch):
                asked.tell(self._told(made, place, before, asked.settings))

    def _configured(self, settings: Settings, new_tokens: int) -> Any:
        config = copy.deepcopy(self.model.generation_config)
        drawing = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k or 0}
        unused = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "typical_p": 1.0}
        config.update(
            **(drawing if settings.samples else unused),
            **settings.others,
            do_sample=settings.samples,
            max_new_tokens=new_tokens,
            return_dict_in_generate=True,
            output_logits=settings.logprobs is not None,
        )
        if settings.ignore_eos:
            config.eos_token_id = no_token(self.model)
        return config

    def _told(self, made: Any, place: int, before: int, settings: Settings) -> Tokens:
        ids = made.sequences[place, before:].tolist()
        ends = [] if settings.ignore_eos else [at for at, each in enumerate(ids) if each in self._eos]
        kept = ids[: ends[0]] if ends else ids
        reason: Any = "stop" if ends else "length"
        if settings.logprobs is None:
            return Tokens(tuple(kept), reason)
        likely = [
            _likelihoods(each[place], token, settings.logprobs) for each, token in zip(made.logits, kept, strict=False)
        ]
        return Tokens(tuple(kept), reason, tuple(own for own, _ in likely), tuple(most for _, most in likely))


class _Rows(StoppingCriteria):
    """Sees every token as ``generate`` adds it: tells it, and ends the rows that are done or unwanted."""

    def __init__(self, batch: Sequence[_Asked], eos: frozenset[int], before: int, *, tell: bool) -> None:
        self._batch = batch
        self._eos = eos
        self._before = before
        self._tell = tell
        self._done = [False] * len(batch)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Look at the last column. Shapes: (rows, tokens), returns (rows,): which rows end here."""
        if not self._tell:
            unwanted = not any(asked.wanted for asked in self._batch)
            return torch.full((input_ids.shape[0],), unwanted, device=input_ids.device)
        count = input_ids.shape[1] - self._before
        for place, (asked, token) in enumerate(zip(self._batch, input_ids[:, -1].tolist(), strict=True)):
            if not self._done[place]:
                self._done[place] = self._add(asked, token, count)
        return torch.tensor(self._done, device=input_ids.device)

    def end(self) -> None:
        """Tell the end of the rows that ``generate`` has ended by itself: for a ``max_time`` of the model's, say."""
        for asked, done in zip(self._batch, self._done, strict=True):
            if self._tell and not done:
                asked.tell(Tokens((), "length"))

    def _add(self, asked: _Asked, token: int, count: int) -> bool:
        if not asked.wanted:
            return True
        if token in self._eos and not asked.settings.ignore_eos:
            asked.tell(Tokens((), "stop"))
            return True
        full = count >= asked.settings.max_new_tokens
        asked.tell(Tokens((token,), "length" if full else None))
        return full


def _likelihoods(logits: torch.Tensor, token: int, most: int) -> tuple[float, tuple[Likelihood, ...]]:
    """Return the log probability of a token, and the likeliest tokens. Shape: (vocabulary,)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, ids = logprobs.topk(min(most, logprobs.shape[-1]))
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)
    return float(logprobs[token]), tuple(Likelihood(*each) for each in likeliest)


def no_token(model: Any) -> int:
    """Return what no token of a model equals. Where it is told None, ``generate`` takes the model's own setting."""
    return int(model.config.get_text_config().vocab_size)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from a seed; afterwards torch goes on as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
