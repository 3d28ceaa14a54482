"""Which token comes next in continuous batching: for each request in its own way, by chance only where it asks for it.

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
from registry_serve.generation.repetition import Repetition

#: Of Transformers' names, those that this does beside what every engine does.
DOES = frozenset({"min_p", "repetition_penalty"})
#: Those that it does not do and a model's own configuration may have, and what they are when they do nothing.
_BEYOND = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "sequence_bias": {},
    "suppress_tokens": [],
    "top_h": None,
    "typical_p": 1.0,
    "watermarking_config": None,
}


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


class _LeastShare(transformed.ContinuousBatchingLogitsProcessor):
    """Leaves only tokens that are at least so likely, measured by the likeliest one. 0 leaves all."""

    def __init__(self) -> None:
        self.supported_kwargs = {"min_p": float}
        self.ignored_kwargs = ()

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        least = [each.state.logit_processor_kwargs.get("min_p", 0.0) for each in requests_with_new_token]
        return torch.tensor(least, dtype=torch.float32).view(torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        least = tensor_arg[: scores.shape[0]].view(torch.float32).log().unsqueeze(-1)
        return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + least, -torch.inf)


class _MinP(_WhereAsked, _LeastShare):
    unused = 0


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


class _Processors(transformed.ContinuousBatchingLogitsProcessorList):
    """Changes scores as ``generate`` does: the penalty first, then what draws, in Transformers' order."""

    def __init__(self, repetition: Repetition, *others: Any) -> None:
        super().__init__(LogitsProcessorList([repetition, *others]))
        self.tensors_required = 1 + len(others)
        self._repetition = repetition

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Say what belongs to which place of the next step; places beyond belong to nobody."""
        self._repetition.fill_defaults(arg_storage[0])  # else they would mark what others have
        prepared: torch.Tensor = super().prepare_tensor_args(requests_in_batch, arg_storage)
        return prepared

    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: torch.Tensor) -> torch.Tensor:
        self._repetition.mark(input_ids, logits_processor_args[0])
        changed: torch.Tensor = super().__call__(input_ids, scores, logits_processor_args)
        return changed


def processors(vocabulary: int, requests: int, device: Any) -> Any:
    """Return what changes the scores of every step, for a manager that draws nothing by itself.

    Args:
        vocabulary: how many tokens there are.
        requests: how many are computed at a time.
        device: where.
    """
    return _Processors(
        Repetition(vocabulary, requests, device),
        _Temperature(TemperatureLogitsWarper(1.0)),
        _TopK(vocabulary),
        _TopP(TopPLogitsWarper(1.0)),
        _MinP(),
        _ByChance(),
    )


def drawing(settings: Settings, vocabulary: int) -> dict[str, Any]:
    """Return what a request says to them."""
    always = {"repetition_penalty": float(settings.others.get("repetition_penalty", 1.0))}
    if not settings.samples:
        return {**always, "temperature": 1.0, "top_k": vocabulary, "top_p": 1.0, "min_p": 0.0, "by_chance": False}
    return {
        **always,
        "temperature": float(settings.temperature),
        "top_k": min(settings.top_k or vocabulary, vocabulary),
        "top_p": float(settings.top_p),
        "min_p": float(settings.others.get("min_p", 0.0)),
        "by_chance": True,
    }


def beyond(own: Any) -> list[str]:
    """Return the names of what a model's configuration of its generation asks for and is not done here."""
    return [name for name, idle in _BEYOND.items() if getattr(own, name, None) not in (None, idle)]


def _noise(scores: torch.Tensor, chances: torch.Generator | None = None) -> torch.Tensor:
    return -torch.empty_like(scores).exponential_(generator=chances).log()
