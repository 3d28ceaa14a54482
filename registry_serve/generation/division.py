"""Division: whether each layer of a model can be divided over several processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from registry_serve.errors import HandlerInvalid
from registry_serve.generation.language import Language

#: The layers that make keys and values, as models name them.
_KEYS = ("k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv")
#: Those that continuous batching looks for, to know whether each process keeps only some of the heads.
_KNOWN_KEYS = ("layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj")
#: How a plan names a layer whose results stay divided.
_DIVIDED = "colwise"


def require_divisible(language: Language, ranks: int) -> None:
    """Make sure that a model can be divided; its weights are not read.

    Args:
        language: of the model.
        ranks: over how many processes.

    Raises:
        HandlerInvalid: it cannot.
    """
    reason = _obstacle(language, ranks)
    if reason is not None:
        name = language.source.name
        raise HandlerInvalid(
            "huggingface", f"the model {name!r} cannot be divided over {ranks} processes (tensor_parallel): {reason}"
        )


def divides_keys(plan: Mapping[str, str]) -> bool:
    """Say whether continuous batching takes a plan for one where each process keeps only some heads' keys and values.

    Args:
        plan: how each layer is divided, as Transformers has it.
    """
    return all(name in plan or f"model.{name}" in plan for name in _KNOWN_KEYS)


def _obstacle(language: Language, ranks: int) -> str | None:
    if language.encodes:
        return "it has an encoder"
    if language.source.precision.autocast is not None:
        return "autocast_dtype is set"
    config = language.source.config()
    with torch.device("meta"):  # the layers without their weights
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=language.source.trusted
        )
    plan = model.tp_plan or {}
    if not plan:
        return f"Transformers has no plan for {type(model).__name__}, as it has for Llama, Mistral or Qwen"
    own = {style for name, style in plan.items() if name.rpartition(".")[2] in _KEYS}
    if (own == {_DIVIDED}) != divides_keys(plan) and (_DIVIDED in own or divides_keys(plan)):
        return f"continuous batching cannot follow how Transformers divides the attention of {type(model).__name__}"
    if _DIVIDED not in own:
        return None
    text = config.get_text_config()
    heads = {
        "attention heads": text.num_attention_heads,
        "heads of keys and values": getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
    }
    for what, count in heads.items():
        if count % ranks:
            return f"it has {count} {what}, which {ranks} does not divide"
    return None
