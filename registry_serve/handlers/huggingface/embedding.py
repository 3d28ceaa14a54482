"""Embedding texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

from registry_serve.errors import HandlerInvalid, InvalidRequest
from registry_serve.generation.pretrained import Source, limits
from registry_serve.generation.prompts import Prompts, padded

_LARGEST_BATCH = 32
_PART_OF_POOLING = "pooling_mode_"
_POOLINGS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text's tokens become one.

    Attributes:
        kind: ``mean``, over the tokens of the text; or ``cls``, the first token's.
        normalised: whether the result is brought to length 1.
    """

    kind: str = "mean"
    normalised: bool = False

    @classmethod
    def of(cls, source: Source) -> Pooling:
        """Return what a model of sentence-transformers says about itself; the mean for all others.

        Raises:
            HandlerInvalid: it says something else than can be done here.
        """
        modules = source.document("modules.json") or []
        kinds = [each["type"].rpartition(".")[2] for each in modules]
        other = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
        if other:
            raise _unsupported(source.name, f"a module {other[0]} of sentence-transformers")
        folder = next(
            (each["path"] for each, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), "1_Pooling"
        )
        config = source.document(f"{folder}/config.json") or {"pooling_mode": "mean"}
        modes = [
            name.removeprefix(_PART_OF_POOLING)
            for name, on in config.items()
            if name.startswith(_PART_OF_POOLING) and on
        ]
        chosen = modes or [config.get("pooling_mode", "mean")]
        if len(chosen) != 1 or chosen[0] not in _POOLINGS:
            raise _unsupported(source.name, f"{' and '.join(map(str, chosen))} pooling")
        return cls(_POOLINGS[chosen[0]], "Normalize" in kinds)

    def __call__(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool. Shapes: (texts, tokens, size) and (texts, tokens), padded on the right; returns (texts, size)."""
        if self.kind == "cls":
            pooled = vectors[:, 0]
        else:
            counted = mask.unsqueeze(-1).to(vectors.dtype)
            pooled = (vectors * counted).sum(1) / counted.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1) if self.normalised else pooled


class FeatureExtraction:
    """A model that embeds texts; of an encoder-decoder, its encoder."""

    def __init__(self, source: Source) -> None:
        config = source.config()
        self._pooling = Pooling.of(source)
        self._precision = source.precision
        self._tokenizer = source.tokenizer()
        model = source.model(AutoModel)
        self._model = model.get_encoder() if config.is_encoder_decoder else model
        # Of the two, RoBERTa's configuration counts positions that it cannot use.
        self._prompts = Prompts(self._tokenizer, min(limits(config, self._tokenizer), default=None))

    def answer(self, requests: list[dict[str, Any]]) -> list[list[float]]:
        """Embed a batch; embeddings in the order of the requests.

        Raises:
            InvalidRequest: an input is wrong, or there are parameters.
        """
        unknown = sorted({name for each in requests for name in each.get("parameters") or {}})
        if unknown:
            message = "is unknown: feature extraction takes no parameters"
            raise InvalidRequest([{"location": ["parameters", name], "message": message} for name in unknown])
        prompts = self._prompts.all_of(requests, conversations=False)
        # Texts of like length together: less to pad.
        places = sorted(range(len(prompts)), key=lambda place: len(prompts[place].ids))
        answers: list[list[float]] = [[] for _ in prompts]
        for first in range(0, len(places), _LARGEST_BATCH):
            batch = places[first : first + _LARGEST_BATCH]
            tokens = padded(
                [prompts[each].ids for each in batch], self._tokenizer.pad_token_id, "right", self._model.device
            )
            for place, embedding in zip(batch, self._embed(tokens), strict=True):
                answers[place] = embedding
        return answers

    def _embed(self, tokens: dict[str, torch.Tensor]) -> list[list[float]]:
        with torch.inference_mode(), self._precision.autocasting():
            vectors = self._model(**tokens).last_hidden_state.float()
        embeddings: list[list[float]] = self._pooling(vectors, tokens["attention_mask"]).tolist()
        return embeddings


def _unsupported(name: str, what: str) -> HandlerInvalid:
    return HandlerInvalid("huggingface", f"{name!r} has {what}, which only a handler of your own can do")
