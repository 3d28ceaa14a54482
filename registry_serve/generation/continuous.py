"""The engine for decoders: Transformers' continuous batching, behind the one adapter that knows it.

Its manager is young, and changes with nearly every release. What is dealt with here, seen with Transformers 5.23:

- One request that can never fit into the cache ends the manager's loop for everybody: such requests are refused.
- A manager that has failed takes requests and forgets them: each is told, and the next starts another manager.
- A request that is cancelled is told nothing, and its handler stays registered: both are done here.
- The cache takes most of the memory unless its size is given.
- Whether tokens are drawn is decided per manager: see ``drawing``.
- On CPUs, requests are computed as if each looked at all others: see ``attention``.
- The model of a running manager cannot be used otherwise: it gets one of its own, with the same weights.
- Outputs hold the whole answer each time.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import queue
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from registry_serve.generation import EngineFailed, EngineLost, RequestTooLarge, Settings, Tokens
from registry_serve.generation.attention import EACH_ALONE, SIDE_BY_SIDE, can_attend_alone
from registry_serve.generation.drawing import DOES, drawing, processors
from registry_serve.generation.memory import cache_tokens_for, is_beyond_repair

_PAGE_TOKENS = 32
#: Prompts are read in steps of so many tokens, between which others' answers go on.
_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
_MOST_AT_A_TIME = 256
_WATCHED_EACH_S = 0.2
_STOP_S = 5.0

logger = logging.getLogger(__name__)


class ContinuousEngine:
    """Answers many requests at a time, each as long as it needs.

    Attributes:
        name: ``continuous``.
        capacity: tokens that one request may have, prompt and answer together.

    Args:
        model: a decoder of Transformers; its weights are shared, nothing else.
        eos: tokens that end an answer.
        context: tokens that the model takes; None where it does not say.
        cache_tokens: tokens of all requests that are kept in memory; None for as many as is sensible.
        alone: whether the model's every part is in this process; else an engine that fails is not started anew.
    """

    name = "continuous"

    def __init__(
        self,
        model: Any,
        eos: Sequence[int],
        context: int | None,
        cache_tokens: int | None = None,
        *,
        alone: bool = True,
    ) -> None:
        self._model = twin(model) if alone else model
        self._eos = frozenset(eos)
        self._alone = alone
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        pages = -(-(cache_tokens or cache_tokens_for(model, context)) // _PAGE_TOKENS) + 1
        self.capacity = (pages - 1) * _PAGE_TOKENS
        self._settings = _settings(model.device.type, pages)
        self._waiting: dict[str, tuple[Any, asyncio.Queue[Any]]] = {}
        self._names = count()
        self._watching: asyncio.Task[None] | None = None
        self._lost = False
        self._rebuilt = 0
        self._rebuilding: asyncio.Task[None] | None = None
        self._manager = self._started()

    def takes(self, settings: Settings) -> bool:
        """Say whether it can generate like this: the same for all places of an answer, by chance or not."""
        return settings.others.keys() <= DOES and settings.seed is None and settings.logprobs is None

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more."""
        return self._lost

    @property
    def failed(self) -> bool:
        """Whether it takes no requests now."""
        return self._lost or not _healthy(self._manager)

    def status(self) -> Mapping[str, Any]:
        """Return what it does, ready for JSON."""
        return {
            "engine": self.name,
            "answering": len(self._waiting),
            "capacity": self.capacity,
            "rebuilt": self._rebuilt,
        }

    async def submit(self, prompt: list[int], settings: Settings) -> AsyncGenerator[Tokens, None]:
        """Generate one answer; see :class:`registry_serve.generation.Engine`."""
        size = len(prompt) + settings.max_new_tokens
        if size > self.capacity:
            raise RequestTooLarge(size, self.capacity)
        manager = await self._running()
        name = f"request-{next(self._names)}"
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting[name] = manager, outputs
        finished = False
        try:
            manager.register_result_handler(name, outputs.put_nowait)
            taken = manager.add_request(
                list(prompt),
                request_id=name,
                max_new_tokens=settings.max_new_tokens,
                streaming=True,
                eos_token_id=-1 if settings.ignore_eos else list(self._eos) or -1,
                **drawing(settings, self._vocabulary),
            )
            if taken is None:
                raise EngineFailed("the engine takes no requests")
            self._watch()
            told = 0
            while not finished:
                output = await _newest(outputs)
                if isinstance(output, Exception):
                    raise output
                if output.error is not None:
                    self._lost |= not self._alone and not _healthy(manager)
                    raise EngineLost(output.error) if self._lost else EngineFailed(output.error)
                finished = output.is_finished()
                ids = output.generated_tokens
                ended = finished and not settings.ignore_eos and bool(ids) and ids[-1] in self._eos
                new = tuple(ids[told : len(ids) - ended])
                told += len(new)
                reason = None if not finished else "stop" if ended else "length"
                if new or reason:
                    yield Tokens(new, reason)  # type: ignore[arg-type]
        finally:
            del self._waiting[name]
            if not finished:
                manager.cancel_request(name)
            manager.output_router.result_handlers.pop(name, None)
            _forget_unread(manager)

    def close(self) -> None:
        """End the manager's thread, and free its cache."""
        if self._watching is not None:
            with suppress(RuntimeError):  # the loop has ended before
                self._watching.get_loop().call_soon_threadsafe(self._watching.cancel)
        self._end(self._manager)

    def lose(self) -> None:
        """Fail all requests, and take no more: a part of the model has gone. Called on the event loop."""
        self._lost = True
        self._fail(lambda: EngineLost("a process of the model has ended"))

    def _started(self) -> Any:
        base: Any = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
        alone = can_attend_alone(self._model)
        if alone:
            self._model.set_attn_implementation(SIDE_BY_SIDE)  # the manager insists on one that it knows
        manager = self._model.init_continuous_batching(
            generation_config=base, continuous_batching_config=copy.deepcopy(self._settings)
        )
        if alone:
            self._model.set_attn_implementation(EACH_ALONE)
        manager.logit_processor = processors(self._vocabulary, _MOST_AT_A_TIME, self._model.device)
        manager.start()
        return manager

    def _end(self, manager: Any) -> None:
        if manager.is_running():
            manager.stop(block=True, timeout=_STOP_S, hard_stop=True)
        manager.batch_processor = manager.logit_processor = None

    async def _running(self) -> Any:
        """Return a manager that takes requests; another one where the last has failed.

        Raises:
            EngineLost: there cannot be another one.
        """
        if self._lost:
            raise EngineLost("a process of the model has ended")
        manager = self._manager
        if _healthy(manager):
            return manager
        if not self._alone:
            self.lose()
            raise EngineLost("the engine has failed, and its other processes with it")
        if self._rebuilding is None or self._rebuilding.done():
            self._rebuilding = asyncio.get_running_loop().create_task(self._rebuild(manager))
        await asyncio.shield(self._rebuilding)
        return self._manager

    async def _rebuild(self, failed: Any) -> None:
        """Start another manager in the place of one that has failed, once its cache is free.

        Raises:
            EngineLost: there cannot be another one.
        """
        error = failed.background_thread_status.fatal_error
        if error is not None and is_beyond_repair(error):
            self.lose()
            raise EngineLost("the GPU has failed")
        logger.error("The generation engine has failed; another one is started.", exc_info=error)
        self._rebuilt += 1
        await asyncio.to_thread(self._end, failed)
        if error is not None:
            error.__traceback__ = None  # it leads to what the thread held
        await asyncio.to_thread(gc.collect)
        self._manager = self._started()

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch_over_managers())

    async def _watch_over_managers(self) -> None:
        """Tell those who wait when their manager has ended without telling them."""
        while self._waiting:
            await asyncio.sleep(_WATCHED_EACH_S)
            _forget_unread(self._manager)
            for manager in {id(each): each for each, _ in self._waiting.values() if not _healthy(each)}.values():
                self._lost = self._lost or not self._alone
                kind = EngineFailed if self._alone else EngineLost
                self._fail(partial(kind, "the engine has failed"), manager)

    def _fail(self, error: Callable[[], Exception], manager: Any = None) -> None:
        for own, outputs in self._waiting.values():
            if manager is None or own is manager:
                outputs.put_nowait(error())


def twin(model: Any) -> Any:
    """Return another model of the same weights, which can be set up otherwise."""
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _settings(device: str, pages: int) -> Any:
    return ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=pages,
        max_batch_tokens=_STEP_TOKENS.get(device, 512),
        max_requests_per_batch=_MOST_AT_A_TIME,
        auto_switch_to_flash=device == "cuda",
        use_cuda_graph=None if device == "cuda" and not torch.distributed.is_initialized() else False,
        cpu_group_timeout=30.0,
        seed=secrets.randbits(31),  # torch starts every process with the same one
    )


def _forget_unread(manager: Any) -> None:
    """Drop what still comes of requests that were cancelled: nobody reads it, and it would stay."""
    with suppress(queue.Empty):
        while True:
            manager.output_router.output_queue.get_nowait()


def _healthy(manager: Any) -> bool:
    return manager.is_running() and manager.background_thread_status.can_accept_new_requests() is None


async def _newest(outputs: asyncio.Queue[Any]) -> Any:
    """Wait for an output, and of several return the last: each holds those before it."""
    newest = await outputs.get()
    while not outputs.empty() and not isinstance(newest, Exception):
        newest = outputs.get_nowait()
    return newest
