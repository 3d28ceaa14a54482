"""How many tokens an engine keeps in memory, where nobody says."""

from __future__ import annotations

from typing import Any

import torch

from registry_serve.generation.division import divides_keys

_GPU_SHARE = 0.6
_CPU_BYTES = 2**30
#: More requests than so many of full length at a time are seldom.
_FULL_REQUESTS = 64
_FEWEST = 256
_CONTEXT_IF_UNKNOWN = 2048


def cache_tokens_for(model: Any, context: int | None) -> int:
    """Return how many tokens the cache of a model may hold: for many requests at a time, as far as there is memory.

    Args:
        model: of Transformers, on its device.
        context: tokens that it takes; None where it does not say.
    """
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        room = int(free * _GPU_SHARE)
    else:
        room = _CPU_BYTES
    wanted = _FULL_REQUESTS * (context or _CONTEXT_IF_UNKNOWN)
    return max(_FEWEST, min(wanted, room // bytes_per_token(model)))


def bytes_per_token(model: Any) -> int:
    """Return how much the keys and values of one token take, on this process."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if (model.tp_size or 1) > 1 and divides_keys(model.tp_plan):
        heads //= model.tp_size
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def is_beyond_repair(error: BaseException) -> bool:
    """Say whether a GPU has failed so that nothing in this process can be computed on it any more."""
    return isinstance(error, torch.AcceleratorError)
