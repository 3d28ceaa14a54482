"""Ranks: one model on several processes of a node, each with a part of every layer. The one module here that knows Ray.

The process that is asked is rank 0; the others are child actors of it, in the bundles of its placement group. All load
their parts and start the same engine at the same time, and Transformers computes each step on all of them together.
When one of them ends, the others can only wait for it: then all end, and whoever started rank 0 starts it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from torch import distributed

from registry_serve.errors import HandlerInvalid
from registry_serve.generation import Settings, Tokens
from registry_serve.generation.continuous import ContinuousEngine
from registry_serve.generation.division import require_divisible
from registry_serve.generation.generator import Generator, tell_of_what_is_not_done
from registry_serve.generation.language import Language
from registry_serve.generation.part import HERE, WATCHED_EACH_S, Part, Rank, told

#: How long a process that has failed may take to say why, after the others have noticed.
_REASON_S = 2.0
#: In which the answers to the requests in flight leave this process, before it ends.
_GRACE_S = 1.0
_END_S = 5.0

logger = logging.getLogger(__name__)
_Actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(Rank)


def divided(language: Language, ranks: int, cache_tokens: int | None = None) -> Generator:
    """Load a model on several processes, and return what generates with it. Blocks.

    Args:
        language: of the model.
        ranks: processes, this one included; at least two.
        cache_tokens: tokens that continuous batching keeps in memory; None for as many as is sensible.

    Raises:
        HandlerInvalid: the model cannot be divided, or a process cannot load its part.
    """
    require_divisible(language, ranks)
    engine = Ranks(language, ranks, cache_tokens)
    tell_of_what_is_not_done(language, engine.model.generation_config)
    return Generator(language, [engine], engine.model.generation_config)


class Ranks:
    """An engine whose processes answer together; see :class:`registry_serve.generation.Engine`.

    Attributes:
        name: ``continuous``.
        capacity: tokens that one request may have, prompt and answer together.
        model: the part of this process.
    """

    name = ContinuousEngine.name

    def __init__(self, language: Language, ranks: int, cache_tokens: int | None) -> None:
        self._name = language.source.name
        self._closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        if not ray.is_initialized():
            raise self._refusal("its processes are actors of Ray, and this process has not joined a cluster")
        if distributed.is_initialized():
            raise self._refusal("this process has been one of several before, and can be so only once")
        self._parts = [Part(language.source, rank, ranks, cache_tokens) for rank in range(ranks)]
        self._children = self._start()
        try:
            self.model, self._engine, self._pids = self._load(language)
            self.capacity = self._engine.capacity
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def takes(self, settings: Settings) -> bool:
        """Say whether it can generate like this."""
        return self._engine.takes(settings)

    def submit(self, prompt: list[int], settings: Settings) -> AsyncIterator[Tokens]:
        """Generate one answer."""
        self._loop = asyncio.get_running_loop()
        return self._engine.submit(prompt, settings)

    @property
    def lost(self) -> bool:
        """Whether one of its processes has ended."""
        return self._engine.lost

    def status(self) -> Mapping[str, Any]:
        """Return what it does, ready for JSON; ``pids`` are the processes, rank 0 first."""
        return {**self._engine.status(), "ranks": len(self._parts), "pids": [os.getpid(), *self._pids]}

    def close(self) -> None:
        """End the engine on all processes, then the other processes."""
        self._closed.set()
        self._engine.close()
        self._end()

    def _start(self) -> list[Any]:
        """Start the other processes, each in its bundle of the placement group, if there is one."""
        group, on_gpu = get_current_placement_group(), self._parts[0].source.precision.device == "cuda"
        if group is None and on_gpu:
            raise self._refusal("only a deployment gives each of its processes a GPU: deploy it with tensor_parallel")
        if group is not None and group.bundle_count < len(self._parts):
            raise self._refusal(f"the placement group of the replica has {group.bundle_count} bundles")
        environment = {} if on_gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        children = []
        for part in self._parts[1:]:
            if group is None:
                options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": _this_node()}
            else:
                bundle = group.bundle_specs[part.rank]
                options = {
                    "num_cpus": bundle.get("CPU", 0),
                    "num_gpus": bundle.get("GPU", 0),
                    "scheduling_strategy": PlacementGroupSchedulingStrategy(group, part.rank),
                }
            children.append(_Actor.options(runtime_env=environment, **options).remote())
        return children

    def _load(self, language: Language) -> tuple[Any, ContinuousEngine, list[int]]:
        """Load all parts at the same time; one that fails must not leave the others waiting for it."""
        store: Any = distributed.TCPStore(  # type: ignore[attr-defined]
            HERE, 0, len(self._parts), is_master=True, wait_for_workers=False
        )
        own = _aside(lambda: self._parts[0].load(store, language))
        loading = {
            child.load.remote(part, store.port): part.rank
            for child, part in zip(self._children, self._parts[1:], strict=True)
        }
        pids: dict[int, int] = {}
        while len(pids) < len(loading) or not own.done():
            waiting = [each for each, rank in loading.items() if rank not in pids]
            failed = own.done() and own.exception() is not None
            done: list[Any] = []
            if waiting:
                done, _ = ray.wait(waiting, timeout=_REASON_S if failed else WATCHED_EACH_S)
            else:
                time.sleep(WATCHED_EACH_S)
            for each in done:
                pids[loading[each]] = self._pid(each, loading[each])
            if failed:
                break
        try:
            model, engine = own.result()
        except HandlerInvalid:
            raise
        except Exception as error:
            raise self._refusal(f"rank 0 cannot load its part: {told(error)}") from error
        return model, engine, [pids[rank] for rank in sorted(pids)]

    def _pid(self, loaded: Any, rank: int) -> int:
        try:
            pid: int | str = ray.get(loaded)
        except RayError as error:
            happened = f"rank {rank} ended while it loaded its part, perhaps for want of memory"
            raise self._refusal(happened) from error
        if isinstance(pid, str):
            raise self._refusal(f"rank {rank} cannot load its part: {pid}")
        return pid

    def _watch(self) -> None:
        """Wait until a process ends, or its engine. Then nothing but other processes help."""
        ended = [child.ended.remote() for child in self._children]
        while not self._engine.failed:
            if self._closed.is_set() or not ray.is_initialized():
                return
            done, _ = ray.wait(ended, timeout=WATCHED_EACH_S)
            if done:
                break
        if self._closed.is_set():
            return
        logger.error("A process of the model %r has ended, or its engine: all of them end.", self._name)
        if self._loop is None:
            self._engine.lose()
        else:
            with suppress(RuntimeError):  # the loop has ended before
                self._loop.call_soon_threadsafe(self._engine.lose)
        self._end()
        if ray.get_runtime_context().get_actor_id() is not None:
            time.sleep(_GRACE_S)
            os._exit(1)  # Ray notices, and Serve starts another replica; threads may wait for ever for what has ended

    def _end(self) -> None:
        """End the other processes, and wait a moment until they are gone."""
        for child in self._children:
            ray.kill(child)
        for pid in getattr(self, "_pids", ()):
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(pid).wait(_END_S)

    def _refusal(self, reason: str) -> HandlerInvalid:
        return HandlerInvalid("huggingface", f"the model {self._name!r} cannot be divided: {reason}")


def _this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _aside(work: Callable[[], Any]) -> Future[Any]:
    """Do something in a thread that the process does not wait for when it ends: it may wait for ever for others."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - told to who waits
            outcome.set_exception(error)

    threading.Thread(target=run, name="rank-0", daemon=True).start()
    return outcome
