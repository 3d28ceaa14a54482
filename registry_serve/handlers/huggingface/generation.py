"""Generating text."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from registry_serve.errors import InvalidRequest
from registry_serve.handlers.huggingface.parameters import GenerationParameters
from registry_serve.handlers.huggingface.pieces import Pieces, TokensAsText, before_stop
from registry_serve.handlers.huggingface.pretrained import Source, limits
from registry_serve.handlers.huggingface.prompts import Prompt, Prompts, padded

_LARGEST_BATCH = 32


class TextGeneration:
    """A language model: decoder alone, or encoder and decoder."""

    def __init__(self, source: Source) -> None:
        config = source.config()
        self._encodes = bool(config.is_encoder_decoder)
        self._precision = source.precision
        self._tokenizer = source.tokenizer()
        self._model = source.model(AutoModelForSeq2SeqLM if self._encodes else AutoModelForCausalLM)
        self._complete(self._model.generation_config)
        self._context = next(iter(limits(config, self._tokenizer)), None)
        # A decoder's context must hold at least one token of the answer as well.
        most = self._context if self._encodes or self._context is None else self._context - 1
        self._prompts = Prompts(self._tokenizer, most)

    def answer(self, requests: list[dict[str, Any]]) -> list[str | list[str]]:
        """Generate for a batch; texts in the order of the requests.

        Raises:
            InvalidRequest: an input or a parameter is wrong.
        """
        parameters = [GenerationParameters.of(each.get("parameters") or {}) for each in requests]
        prompts = self._prompts.all_of(requests, conversations=True)
        alike = defaultdict(list)
        for place, (prompt, asked) in enumerate(zip(prompts, parameters, strict=True)):
            # Rows of one call stop at the same number of tokens; and what is drawn depends on the neighbours.
            alike[asked, self._new_tokens(prompt, asked), None if asked.seed is None else place].append(place)
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
        (prompt,) = self._prompts.all_of([{"input": given}], conversations=True)
        return self._stream(prompt, asked)

    def _stream(self, prompt: Prompt, asked: GenerationParameters) -> Iterator[str]:
        pieces = Pieces(self._text_of(prompt))
        work = threading.Thread(target=self._generate_into, args=(pieces, prompt, asked), daemon=True)
        work.start()
        try:
            beginning = self._beginning(prompt, asked)
            if beginning:
                yield beginning
            yield from before_stop(pieces, asked.stop)
        finally:
            pieces.abandon()
            work.join()

    def _generate_into(self, pieces: Pieces, prompt: Prompt, asked: GenerationParameters) -> None:
        with pieces.closing():
            self._generate([prompt], asked, self._new_tokens(prompt, asked), streamer=pieces)

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
        side = "right" if self._encodes else "left"
        tokens = padded(prompts, self._tokenizer.pad_token_id, side, self._model.device)
        config = self._configured(asked, new_tokens)
        with torch.inference_mode(), self._precision.autocasting(), _seeded(asked.seed):
            rows = self._model.generate(
                **tokens, generation_config=config, streamer=streamer, tokenizer=self._tokenizer
            )
        # What an encoder-decoder returns begins with its start token, and holds nothing of the input.
        new: torch.Tensor = rows if self._encodes else rows[:, tokens["input_ids"].shape[1] :]
        return new

    def _configured(self, asked: GenerationParameters, new_tokens: int) -> Any:
        config = copy.deepcopy(self._model.generation_config)
        config.update(**asked.settings(), max_new_tokens=new_tokens)
        return config

    def _complete(self, own: Any) -> None:
        """Complete the model's own configuration, with which Transformers fills up what a request leaves open."""
        own.pad_token_id = self._tokenizer.pad_token_id
        if own.eos_token_id is None:
            own.eos_token_id = self._tokenizer.eos_token_id
        own.max_length = None  # requests always say how many tokens are new

    def _new_tokens(self, prompt: Prompt, asked: GenerationParameters) -> int:
        if self._encodes or self._context is None:
            return asked.max_new_tokens
        return min(asked.max_new_tokens, self._context - len(prompt.ids))

    def _answer(self, prompt: Prompt, asked: GenerationParameters, new: list[int]) -> str:
        text = self._text_of(prompt)
        return self._beginning(prompt, asked) + "".join(before_stop([text.add(new), text.rest()], asked.stop))

    def _text_of(self, prompt: Prompt) -> TokensAsText:
        return TokensAsText(self._tokenizer, [] if self._encodes else prompt.ids)

    def _beginning(self, prompt: Prompt, asked: GenerationParameters) -> str:
        return prompt.text if asked.return_full_text and not self._encodes else ""


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from a seed; afterwards torch goes on as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
