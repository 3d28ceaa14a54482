"""Drawing tokens by chance in continuous batching: each request in its own way, and only those that ask for it.

Transformers' manager either draws for all of its requests or for none, and where it draws, it sorts the vocabulary for
each of them. Here it draws for none: it takes the likeliest token, and those that are to be drawn have noise added to
their scores. With noise of Gumbel's distribution, the likeliest is as likely to be any token as softmax says.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching import cb_logits_processors as transformed

from registry_serve.generation import Settings


class _WhereAsked:
    """Leaves the scores of requests alone whose value changes nothing.

    On CPUs only: what a GPU does in a step is recorded once, and cannot depend on values.

    Attributes:
        unused: the bits of that value.
    """

    unused: int

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Change the scores. Shapes: (requests, vocabulary), (at least as many as requests,)."""
        values = tensor_arg[: scores.shape[0]]
        change: Any = super().__call__  # type: ignore[misc]
        if scores.device.type != "cpu":
            changed: torch.Tensor = change(scores, values)
            return changed
        rows = (values != self.unused).nonzero().flatten()
        return scores.index_copy(0, rows, change(scores[rows], values[rows])) if len(rows) else scores


class _Temperature(_WhereAsked, transformed.ContinuousBatchingTemperatureLogitsWarper):
    unused = int(torch.tensor(1.0).view(torch.int32))


class _TopP(_WhereAsked, transformed.ContinuousBatchingTopPLogitsWarper):
    unused = _Temperature.unused


class _TopK(_WhereAsked, transformed.ContinuousBatchingTopKLogitsWarper):
    def __init__(self, vocabulary: int) -> None:
        super().__init__(TopKLogitsWarper(vocabulary))
        self.unused = vocabulary


class _ByChance(transformed.ContinuousBatchingLogitsProcessor):
    """Lets chance decide, for the requests that say so."""

    def __init__(self) -> None:
        self.supported_kwargs = {"by_chance": bool}
        self.ignored_kwargs = ()
        self._chances: torch.Generator | None = None

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        chosen = [each.state.logit_processor_kwargs.get("by_chance", False) for each in requests_with_new_token]
        return torch.tensor(chosen, dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Add noise. Shapes: (requests, vocabulary), (at least as many as requests,)."""
        drawn = tensor_arg[: scores.shape[0]].bool()
        if scores.device.type != "cpu":
            return torch.where(drawn.unsqueeze(-1), scores + _noise(scores), scores)
        rows = drawn.nonzero().flatten()
        return scores.index_add(0, rows, _noise(scores[rows], self._own())) if len(rows) else scores

    def _own(self) -> torch.Generator:
        # All processes of a model must draw the same, whatever else is drawn in one of them. Before its first step the
        # manager gives torch the same seed in all of them.
        if self._chances is None:
            self._chances = torch.Generator().manual_seed(torch.initial_seed())
        return self._chances


def processors(vocabulary: int) -> Any:
    """Return what changes the scores of every step, for a manager that draws nothing by itself.

    Args:
        vocabulary: how many tokens there are.
    """
    each = [
        _Temperature(TemperatureLogitsWarper(1.0)),
        _TopK(vocabulary),
        _TopP(TopPLogitsWarper(1.0)),
        _ByChance(),
    ]
    made = transformed.ContinuousBatchingLogitsProcessorList(LogitsProcessorList(each))
    made.tensors_required = len(each)
    return made


def drawing(settings: Settings, vocabulary: int) -> dict[str, Any]:
    """Return what a request says to them."""
    if not settings.samples:
        return {"temperature": 1.0, "top_k": vocabulary, "top_p": 1.0, "by_chance": False}
    return {
        "temperature": float(settings.temperature),
        "top_k": min(settings.top_k or vocabulary, vocabulary),
        "top_p": float(settings.top_p),
        "by_chance": True,
    }


def _noise(scores: torch.Tensor, chances: torch.Generator | None = None) -> torch.Tensor:
    return -torch.empty_like(scores).exponential_(generator=chances).log()
