"""Repetition penalties in continuous batching: tokens that a request has already count less.

Transformers' manager hands a processor of scores nothing but the last token of each request, and knows the tokens of
the step before only when the next one has begun. So the marks of what a request has are kept where scores are computed:
its prompt is marked before its first step, and each new token in the step that reads it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from transformers.generation.continuous_batching import cb_logits_processors as transformed

#: What a request without a penalty has; its marks are written, and change nothing.
_NO_ROW = 0


class Repetition(transformed.ContinuousBatchingLogitsProcessor):
    """Divides the scores of tokens that a request has by its penalty, or multiplies them where they are negative.

    Args:
        vocabulary: how many tokens there are.
        requests: how many are computed at a time.
        device: where.
    """

    def __init__(self, vocabulary: int, requests: int, device: Any) -> None:
        self.supported_kwargs = {"repetition_penalty": float}
        self.ignored_kwargs = ()
        # Twice as many: a step may still be under way while the next one is prepared.
        rows = 2 * requests + 1
        self._beyond = vocabulary  # of some models, prompts have tokens that have no score
        self._marks = torch.zeros((rows, vocabulary + 1), dtype=torch.bool, device=device)
        self._penalties = torch.ones(rows, device=device)
        self._rows: OrderedDict[str, int] = OrderedDict()  # by the request's name; last used last
        self._unused = list(range(rows - 1, _NO_ROW, -1))

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.fill_(_NO_ROW)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        states = [each.state for each in requests_with_new_token]
        penalized = [each for each in states if _penalty(each) != 1.0]
        for state in penalized:  # all of them first, so that none of them makes room for another
            if state.request_id in self._rows:
                self._rows.move_to_end(state.request_id)
        for state in penalized:
            if state.request_id not in self._rows:
                self._begin(state)
        return torch.tensor([self._rows.get(each.request_id, _NO_ROW) for each in states], dtype=torch.int32)

    def mark(self, tokens: torch.Tensor, tensor_arg: torch.Tensor) -> None:
        """Mark the last token of each request. Shapes: (requests,), (at least as many as requests,)."""
        rows = tensor_arg[: tokens.shape[0]].long()
        if tokens.device.type != "cpu" or rows.any():
            self._marks[rows, tokens.long().clamp(max=self._beyond)] = True

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Change the scores. Shapes: (requests, vocabulary), (at least as many as requests,)."""
        rows = tensor_arg[: scores.shape[0]].long()
        if scores.device.type != "cpu":  # what a GPU does in a step is recorded once, and cannot depend on values
            return self._penalize(scores, rows)
        found = rows.nonzero().flatten()
        return scores.index_copy(0, found, self._penalize(scores[found], rows[found])) if len(found) else scores

    def _begin(self, state: Any) -> None:
        row = self._unused.pop() if self._unused else self._rows.popitem(last=False)[1]
        self._rows[state.request_id] = row
        has = torch.tensor(state.initial_tokens + state.generated_tokens, device=self._marks.device)
        self._marks[row] = False
        self._marks[row, has.clamp(max=self._beyond)] = True
        self._penalties[row] = _penalty(state)
        if self._marks.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # steps are computed in a stream of their own

    def _penalize(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        penalties = self._penalties[rows].unsqueeze(-1)
        changed = torch.where(scores < 0, scores * penalties, scores / penalties)
        return torch.where(self._marks[rows, : scores.shape[-1]], changed, scores)


def _penalty(state: Any) -> float:
    return float(state.logit_processor_kwargs.get("repetition_penalty", 1.0))
