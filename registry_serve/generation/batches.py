"""Generating text without an engine: for whoever calls a handler directly."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from registry_serve.errors import InvalidRequest
from registry_serve.generation.language import Language
from registry_serve.generation.parameters import GenerationParameters
from registry_serve.generation.pieces import Pieces, before_stop
from registry_serve.generation.prompts import Prompt, padded
from registry_serve.generation.seeds import seeded
from registry_serve.generation.static import no_token

_LARGEST_BATCH = 32


class TextGeneration:
    """Answers a batch at a time, or one text piece by piece, in the thread that calls it."""

    def __init__(self, language: Language, model: Any) -> None:
        self._language = language
        self._precision = language.source.precision
        self._model = model

    def answer(self, requests: list[dict[str, Any]]) -> list[str | list[str]]:
        """Generate for a batch; texts in the order of the requests.

        Raises:
            InvalidRequest: an input or a parameter is wrong.
        """
        parameters = [GenerationParameters.of(each.get("parameters") or {}) for each in requests]
        prompts = self._language.prompts.all_of(requests, conversations=True)
        alike = defaultdict(list)
        for place, (prompt, asked) in enumerate(zip(prompts, parameters, strict=True)):
            # Rows of one call stop at the same number of tokens; and what is drawn depends on the neighbours.
            alike[asked, self._language.new_tokens(prompt, asked), None if asked.seed is None else place].append(place)
        answers: list[Any] = [None] * len(requests)
        for (asked, new_tokens, _), places in alike.items():
            places.sort(key=lambda place: len(prompts[place].ids))
            for first in range(0, len(places), _LARGEST_BATCH):
                batch = places[first : first + _LARGEST_BATCH]
                texts = self._texts([prompts[place] for place in batch], asked, new_tokens)
                for place, text in zip(batch, texts, strict=True):
                    answers[place] = text
        return answers

    def stream(self, given: Any, parameters: dict[str, Any]) -> Iterator[str]:
        """Generate one text piece by piece.

        Raises:
            InvalidRequest: the input or a parameter is wrong.
        """
        asked = GenerationParameters.of(parameters)
        for name in ("num_return_sequences", "num_beams"):
            if getattr(asked, name) > 1:
                fault = {"location": ["parameters", name], "message": "must be 1 for an answer piece by piece"}
                raise InvalidRequest([fault])
        (prompt,) = self._language.prompts.all_of([{"input": given}], conversations=True)
        return self._stream(prompt, asked)

    def _stream(self, prompt: Prompt, asked: GenerationParameters) -> Iterator[str]:
        pieces = Pieces(self._language.text_of(prompt))
        work = threading.Thread(target=self._generate_into, args=(pieces, prompt, asked), daemon=True)
        work.start()
        try:
            beginning = self._language.beginning(prompt, asked)
            if beginning:
                yield beginning
            yield from before_stop(pieces, asked.stop)
        finally:
            pieces.abandon()
            work.join()

    def _generate_into(self, pieces: Pieces, prompt: Prompt, asked: GenerationParameters) -> None:
        with pieces.closing():
            self._generate([prompt], asked, self._language.new_tokens(prompt, asked), streamer=pieces)

    def _texts(self, prompts: list[Prompt], asked: GenerationParameters, new_tokens: int) -> list[Any]:
        rows = self._generate(prompts, asked, new_tokens).tolist()
        copies = asked.num_return_sequences
        texts = [self._answer(prompts[place // copies], asked, row) for place, row in enumerate(rows)]
        if copies == 1:
            return texts
        return [texts[first : first + copies] for first in range(0, len(texts), copies)]

    def _generate(
        self, prompts: list[Prompt], asked: GenerationParameters, new_tokens: int, streamer: Any = None
    ) -> torch.Tensor:
        """Return the new tokens, a row for each answer."""
        side = "right" if self._language.encodes else "left"
        tokens = padded([each.ids for each in prompts], self._language.tokenizer.pad_token_id, side, self._model.device)
        config = self._configured(asked, new_tokens)
        with torch.inference_mode(), self._precision.autocasting(), seeded(asked.seed):
            rows = self._model.generate(
                **tokens, generation_config=config, streamer=streamer, tokenizer=self._language.tokenizer
            )
        # What an encoder-decoder returns begins with its start token, and holds nothing of the input.
        new: torch.Tensor = rows if self._language.encodes else rows[:, tokens["input_ids"].shape[1] :]
        return new

    def _configured(self, asked: GenerationParameters, new_tokens: int) -> Any:
        config = copy.deepcopy(self._model.generation_config)
        config.update(**asked.settings(), max_new_tokens=new_tokens)
        if asked.ignore_eos:
            config.eos_token_id = no_token(self._model)
        return config

    def _answer(self, prompt: Prompt, asked: GenerationParameters, new: list[int]) -> str:
        text = self._language.text_of(prompt)
        return self._language.beginning(prompt, asked) + "".join(before_stop([text.add(new), text.rest()], asked.stop))
