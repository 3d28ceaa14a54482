"""A part of a model that is divided over several processes, and what a process does with it. See ``ranks``."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from transformers.distributed.configuration_utils import DistributedConfig

from registry_serve.generation.continuous import ContinuousEngine
from registry_serve.generation.language import Language
from registry_serve.generation.memory import cache_tokens_for
from registry_serve.generation.pretrained import Source

#: Where the processes meet.
HERE = "127.0.0.1"
#: How often one looks whether another has ended.
WATCHED_EACH_S = 0.3
#: Processes read their parts of large models at different speeds.
_LOADING_TAKES = timedelta(hours=2)
_LONGEST_REASON = 300

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What a process needs to load its part.

    Attributes:
        source: of the model.
        rank: which part.
        ranks: how many there are.
        cache_tokens: as for ``ranks.divided``.
    """

    source: Source
    rank: int
    ranks: int
    cache_tokens: int | None

    def load(self, store: Any, language: Language) -> tuple[Any, ContinuousEngine]:
        """Load it and start its engine, together with all others.

        Args:
            store: where the processes meet.
            language: of the model.
        """
        on_gpu = self.source.precision.device == "cuda"
        os.environ["LOCAL_RANK"] = "0"  # Ray shows each process its own GPU alone
        os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.ranks,
            timeout=_LOADING_TAKES,
            device_id=torch.device("cuda", 0) if on_gpu else None,
        )
        model = language.weights(distributed_config=DistributedConfig(tp_size=self.ranks))
        tokens = torch.tensor([self.cache_tokens or cache_tokens_for(model, language.context)], device=model.device)
        distributed.all_reduce(tokens, distributed.ReduceOp.MIN)
        return model, ContinuousEngine(model, language.ends(model), language.context, int(tokens), alone=False)


class Rank:
    """Every process but the first: it holds a part, and its engine computes when rank 0's does."""

    def __init__(self) -> None:
        self._engine: ContinuousEngine | None = None

    def load(self, part: Part, port: int) -> int | str:
        """Load a part; return the process's id, or why it cannot be loaded."""
        try:
            store: Any = distributed.TCPStore(HERE, port, part.ranks, is_master=False)  # type: ignore[attr-defined]
            _, self._engine = part.load(store, Language(part.source))
        except BaseException as error:  # told to rank 0 as text, since not every error can be pickled
            logger.exception("Rank %s cannot load its part.", part.rank)
            return told(error)
        return os.getpid()

    def ended(self) -> None:
        """Wait until the engine has ended."""
        assert self._engine is not None
        while not self._engine.failed:
            time.sleep(WATCHED_EACH_S)


def told(error: BaseException) -> str:
    """Return what happened, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON].rstrip(".")


def _loopback() -> str:
    """Return the name of the interface that only processes of this node reach."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
