"""Attention on CPUs in continuous batching: every request's tokens attend to their own, one request after the other.

Transformers lays all requests of a step side by side, and computes what each would give to the tokens of all others
before a mask takes it away: for 32 requests 32 times the work. Kernels for GPUs know where each request begins.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SIDE_BY_SIDE = "sdpa"
EACH_ALONE = "each_alone"
_FULL = "full_attention"


def each_alone(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cache: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend; an attention function of Transformers.

    Shapes: query (1, heads, new tokens of all, size), key and value (1, heads of keys, new tokens of all, size); the
    cache adds those before. Returns (1, new tokens of all, heads, size).
    """
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    news, alls = (pairwise(kwargs[name].tolist()) for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    found = []
    for (first_new, end_new), (first, end) in zip(news, alls, strict=True):
        new, known = end_new - first_new, end - first
        mask = None if new in (1, known) else _causal(new, known, query.device)
        own = query[:, :, first_new:end_new], key[:, :, first:end], value[:, :, first:end]
        found.append(sdpa_attention_forward(module, *own, mask, scaling=scaling, is_causal=True)[0])
    return torch.cat(found, dim=1), None


AttentionInterface.register(EACH_ALONE, each_alone)


def can_attend_alone(model: Any) -> bool:
    """Say whether a model attends as here: on a CPU, to all tokens before, in every layer."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    full = getattr(config, "sliding_window", None) is None if layers is None else set(layers) == {_FULL}
    chosen = config._attn_implementation in (SIDE_BY_SIDE, EACH_ALONE)
    return bool(model.device.type == "cpu" and chosen and full)


def _causal(new: int, known: int, device: torch.device) -> torch.Tensor:
    """Return which tokens the last ones may look at. Shape: (new, known)."""
    return torch.ones(new, known, dtype=torch.bool, device=device).tril(known - new)
