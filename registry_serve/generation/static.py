"""The engine for what continuous batching cannot do: encoder-decoders, beam search, seeds, probabilities and more.

Requests that have gathered while the model was busy go through ``generate`` together, where their settings are the
same; the longest answer decides when the next can begin. Tokens are told as they come, but for beams.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

import torch
from transformers import StoppingCriteriaList

from registry_serve.generation import EngineFailed, RequestTooLarge, Settings, Tokens
from registry_serve.generation.memory import is_beyond_repair
from registry_serve.generation.precision import Precision
from registry_serve.generation.prompts import padded
from registry_serve.generation.rows import Asked, Rows
from registry_serve.generation.seeds import seeded

T = TypeVar("T")


class StaticEngine:
    """Answers requests in batches, one batch after the other.

    Attributes:
        name: ``static``.
        model: of Transformers.
        lost: whether no request can be answered any more.

    Args:
        model: of Transformers.
        precision: that it computes with.
        padding: the token to pad with.
        eos: tokens that end an answer.
        encodes: whether an encoder reads the prompt.
        context: tokens that prompt and answer may have together; None where the model does not say.
        largest: requests that go together at the most.
    """

    name = "static"
    capacity = None

    def __init__(
        self,
        model: Any,
        precision: Precision,
        padding: int,
        eos: Sequence[int],
        *,
        encodes: bool,
        context: int | None = None,
        largest: int = 32,
    ) -> None:
        self.model = model
        self._precision = precision
        self._padding = padding
        self._eos = frozenset(eos)
        self._encodes = encodes
        self._context = context
        self._largest = largest
        self._queue: deque[Asked] = deque()
        self._working: asyncio.Task[None] | None = None
        self._batch: Sequence[Asked] = ()
        self.lost = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    def takes(self, settings: Settings) -> bool:
        """Say whether it can generate like this: always."""
        return True

    def status(self) -> Mapping[str, Any]:
        """Return what it does, ready for JSON."""
        return {"engine": self.name, "answering": len(self._batch), "waiting": len(self._queue)}

    async def submit(self, prompt: list[int], settings: Settings) -> AsyncGenerator[Tokens, None]:
        """Generate one answer; see :class:`registry_serve.generation.Engine`."""
        asked = Asked(prompt, settings, asyncio.get_running_loop())
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
            with suppress(RuntimeError):  # the loop has ended before
                asked.tell(EngineFailed("the engine was closed"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while batch := self._next():
            self._batch = batch
            try:
                await self.alone(lambda batch=batch: self._generate(batch))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - told to those who wait
                self.lost = self.lost or is_beyond_repair(error)
                failed = error if isinstance(error, RequestTooLarge) else EngineFailed("generate raised an error")
                failed.__cause__ = None if failed is error else error
                for asked in batch:
                    asked.tell(failed)
            finally:
                self._batch = ()

    def _next(self) -> list[Asked]:
        """Take the oldest request out of the queue, and those that may share a call with it."""
        while self._queue and not self._queue[0].wanted:
            self._queue.popleft()
        if not self._queue:
            return []
        first = self._queue.popleft()
        batch, left = [first], deque[Asked]()
        for asked in self._queue:
            alike = len(batch) < self._largest and first.group is not None and asked.group == first.group
            if alike and asked.wanted and self._fit_together([*batch, asked]):
                batch.append(asked)
            elif asked.wanted:
                left.append(asked)
        self._queue = left
        return batch

    def _fit_together(self, batch: Sequence[Asked]) -> bool:
        """Say whether all rows may go on until the longest has ended: those that have ended do."""
        if self._encodes or self._context is None:
            return True
        longest = max(len(each.prompt) for each in batch)
        return longest + max(each.settings.max_new_tokens for each in batch) <= self._context

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _generate(self, batch: Sequence[Asked]) -> None:
        settings = batch[0].settings
        side = "right" if self._encodes else "left"
        tokens = padded([each.prompt for each in batch], self._padding, side, self.model.device)
        # What an encoder-decoder returns begins with its start token, and holds nothing of the prompt.
        before = 1 if self._encodes else tokens["input_ids"].shape[1]
        at_the_end = settings.others.get("num_beams", 1) > 1
        rows = Rows(batch, self._eos, before, tell=not at_the_end)
        watched = nullcontext() if settings.logprobs is None else rows.watching(self.model)
        config = self._configured(settings, max(each.settings.max_new_tokens for each in batch))
        with torch.inference_mode(), self._precision.autocasting(), seeded(settings.seed), watched:
            made = self.model.generate(
                **tokens,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([rows]),
            )
        rows.end()
        if at_the_end:
            for place, asked in enumerate(batch):
                asked.tell(self._told(made.sequences[place, before:].tolist(), asked.settings))

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
        )
        if settings.ignore_eos:
            config.eos_token_id = no_token(self.model)
        return config

    def _told(self, ids: Sequence[int], settings: Settings) -> Tokens:
        ends = [] if settings.ignore_eos else [at for at, each in enumerate(ids) if each in self._eos]
        return Tokens(tuple(ids[: ends[0]] if ends else ids), "stop" if ends else "length")


def no_token(model: Any) -> int:
    """Return what no token of a model equals. Where it is told None, ``generate`` takes the model's own setting."""
    return int(model.config.get_text_config().vocab_size)
