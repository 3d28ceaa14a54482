"""Models of random weights, and the engines that generate with them."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from registry_serve.generation import Engine
from registry_serve.generation.continuous import ContinuousEngine
from registry_serve.generation.precision import Precision
from registry_serve.generation.static import StaticEngine

_HEAD = 64
_PAD = 0
#: Of the GPU's whole memory, for weights, what steps need and the cache. Continuous batching takes as large a share of
#: what is free for its cache alone.
_VLLM_SHARE = 0.6


@dataclass(frozen=True)
class Shape:
    """A decoder like Llama, and how long its requests are on average.

    Attributes:
        hidden: size of a token's vector; the feed-forward part is three times as wide.
        layers: how many.
        vocabulary: how many tokens there are.
        context: tokens that prompt and answer may have together.
        prompt: tokens of a prompt.
        answer: tokens of an answer, where they are of similar length.
        long: tokens of an answer, where lengths differ by much.
    """

    hidden: int
    layers: int
    vocabulary: int
    context: int
    prompt: int
    answer: int
    long: int

    @classmethod
    def of(cls, device: str, hidden: int | None, layers: int | None, vocabulary: int | None) -> Shape:
        """Return a small one for CPUs, one of a billion weights for GPUs, but for what is given."""
        small = cls(256, 4, 8000, context=1024, prompt=150, answer=32, long=64)
        billion = cls(2048, 20, 32000, context=8192, prompt=1200, answer=128, long=256)
        given = {"hidden": hidden, "layers": layers, "vocabulary": vocabulary}
        return replace(
            billion if device == "cuda" else small,
            **{name: value for name, value in given.items() if value is not None},
        )

    def model(self, device: str) -> Any:
        """Make one, always the same: 32 bits on CPUs, bfloat16 on GPUs."""
        torch.manual_seed(0)
        heads = max(1, self.hidden // _HEAD)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            max_position_embeddings=self.context,
            pad_token_id=_PAD,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.device(device):
            model: Any = LlamaForCausalLM(config)
        return model.to(torch.bfloat16 if device == "cuda" else torch.float32).eval()


def _continuous(model: Any, shape: Shape) -> Engine:
    return ContinuousEngine(model, [], shape.context)


def _static(model: Any, shape: Shape, largest: int = 32) -> Engine:
    precision = Precision(model.device.type, model.dtype, None)
    return StaticEngine(model, precision, _PAD, [], encodes=False, largest=largest)


def _one(model: Any, shape: Shape) -> Engine:
    return _static(model, shape, largest=1)


def _vllm(model: Any, shape: Shape) -> Engine:
    from registry_serve.generation.vllm import VLLMEngine

    options = {"max_model_len": shape.context, "gpu_memory_utilization": _VLLM_SHARE}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return VLLMEngine(folder, [], dtype="bfloat16" if model.dtype is torch.bfloat16 else "float32", options=options)


#: Engines by name.
ENGINES: Mapping[str, Callable[[Any, Shape], Engine]] = {
    "continuous": _continuous,
    "static": _static,
    "one": _one,
    "vllm": _vllm,
}
TITLES = {
    "continuous": "continuous batching",
    "static": "static batches of 32",
    "one": "one request at a time",
    "vllm": "vLLM",
}


@contextmanager
def running(name: str, model: Any, shape: Shape) -> Iterator[Engine]:
    """Start an engine, and close it afterwards."""
    engine = ENGINES[name](model, shape)
    try:
        yield engine
    finally:
        engine.close()


def free() -> None:
    """Give a GPU's memory back that nothing in this process needs any more: other processes start beside it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
