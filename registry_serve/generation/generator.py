"""Generator: texts in, texts out, many at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import GenerationConfig

from registry_serve.errors import HandlerInvalid, InvalidRequest
from registry_serve.generation import Chunk, Engine, Settings, Tokens, TokenText
from registry_serve.generation.batches import TextGeneration
from registry_serve.generation.continuous import ContinuousEngine
from registry_serve.generation.drawing import beyond
from registry_serve.generation.language import Language
from registry_serve.generation.parameters import AS_MANY_AS_FIT, MOST_ANSWERS, GenerationParameters
from registry_serve.generation.pieces import UntilStop
from registry_serve.generation.prompts import Prompt
from registry_serve.generation.static import StaticEngine
from registry_serve.generation.together import all_of

logger = logging.getLogger(__name__)


class Generator:
    """A language model that takes many requests at a time. Its methods belong to one event loop, but for ``close``.

    Args:
        language: what it reads and writes.
        engines: that generate; each request goes to the first that takes it.
        own: the model's configuration, for what requests leave open.
    """

    def __init__(self, language: Language, engines: Sequence[Engine], own: GenerationConfig) -> None:
        self.language = language
        self._engines = tuple(engines)
        self._own = own

    async def answer(
        self, inputs: Sequence[Any], parameters: dict[str, Any], progressed: Callable[[], None] = lambda: None
    ) -> list[str | list[str]]:
        """Answer several inputs, texts or conversations: a text for each, or several where ``n`` asks for them.

        Args:
            inputs: as in the ``input`` of a handler's requests.
            parameters: for all of them; see :class:`registry_serve.generation.parameters.GenerationParameters`.
            progressed: called whenever there are new tokens.

        Raises:
            InvalidRequest: an input or a parameter is wrong.
            RequestTooLarge: an answer can never be held in memory.
            EngineLost: no request can be answered any more.
            EngineFailed: the engine failed.
        """
        asked = GenerationParameters.of(parameters)
        if len(inputs) * asked.num_return_sequences > MOST_ANSWERS:
            message = f"asks for more than {MOST_ANSWERS} answers, over all inputs; send several requests"
            raise InvalidRequest([{"location": ["parameters", "num_return_sequences"], "message": message}])
        prompts = await self._prompts(inputs)
        if asked.num_beams > 1 and asked.num_return_sequences > 1:
            return await self._beams(inputs, parameters)
        copies = asked.num_return_sequences
        texts = await all_of([self._whole(prompt, asked, progressed) for prompt in prompts for _ in range(copies)])
        if copies == 1:
            return list(texts)
        return [texts[first : first + copies] for first in range(0, len(texts), copies)]

    async def generate(self, given: Any, parameters: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Answer one input piece by piece; closing the generator frees what it holds.

        Raises:
            Exception: as ``answer``.
        """
        asked = GenerationParameters.of(parameters)
        for name in ("num_return_sequences", "num_beams"):
            if getattr(asked, name) > 1:
                fault = {"location": ["parameters", name], "message": "must be 1 for an answer piece by piece"}
                raise InvalidRequest([fault])
        (prompt,) = await self._prompts([given])
        async with aclosing(self._chunks(prompt, asked)) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more."""
        return any(engine.lost for engine in self._engines)

    def status(self) -> dict[str, Any]:
        """Return what its engines do, ready for JSON."""
        return {"engines": [dict(engine.status()) for engine in self._engines]}

    def close(self) -> None:
        """End the engines. Blocks for a moment."""
        for engine in self._engines:
            engine.close()

    async def _prompts(self, inputs: Sequence[Any]) -> list[Prompt]:
        # Long texts take milliseconds to be cut into tokens.
        read = partial(self.language.prompts.all_of, [{"input": each} for each in inputs], conversations=True)
        return await asyncio.to_thread(read)

    async def _whole(self, prompt: Prompt, asked: GenerationParameters, progressed: Callable[[], None]) -> str:
        texts = []
        async with aclosing(self._chunks(prompt, asked)) as chunks:
            async for chunk in chunks:
                progressed()
                texts.append(chunk.text)
        return "".join(texts)

    async def _chunks(self, prompt: Prompt, asked: GenerationParameters) -> AsyncGenerator[Chunk, None]:
        language, length = self.language, len(prompt.ids)
        settings = asked.engine_settings(language.new_tokens(prompt, asked), self._own)
        engine = self._engine(settings)
        if asked.max_new_tokens == AS_MANY_AS_FIT and engine.capacity is not None:
            settings = replace(settings, max_new_tokens=max(1, min(settings.max_new_tokens, engine.capacity - length)))
        if beginning := language.beginning(prompt, asked):
            yield Chunk(beginning, length, 0)
        text, until, count = language.text_of(prompt), UntilStop(asked.stop), 0
        async with aclosing(engine.submit(prompt.ids, settings)) as answers:  # type: ignore[type-var]
            async for new in answers:
                passed, written = "", []
                for token in new.ids:
                    written.append(text.add((token,)))
                    passed += until.add(written[-1])
                    count += 1
                    if until.found:
                        break
                reason: Any = new.finish_reason
                if reason is not None and not until.found:
                    passed += until.add(text.rest())
                    passed += until.rest()
                    count += reason == "stop"
                if until.found:
                    reason = "stop"
                logprobs = None if new.logprobs is None else tuple(self._told(new, written))
                yield Chunk(passed, length, count, reason, logprobs)
                if reason is not None:
                    return

    def _engine(self, settings: Settings) -> Engine:
        for engine in self._engines:
            if engine.takes(settings):
                return engine
        plain = replace(settings, seed=None, logprobs=None, others={})
        asked = [(name, replace(plain, others={name: value})) for name, value in settings.others.items()]
        asked += [(name, replace(plain, **{name: getattr(settings, name)})) for name in ("seed", "logprobs")]
        told = ", ".join(name for name, each in asked if not any(engine.takes(each) for engine in self._engines))
        message = f"ask for something that this deployment's engine cannot do: {told}"
        raise InvalidRequest([{"location": ["parameters"], "message": message}])

    def _told(self, new: Tokens, written: Sequence[str]) -> list[TokenText]:
        write = partial(self.language.tokenizer.decode, clean_up_tokenization_spaces=False)
        likeliest = new.likeliest or ((),) * len(new.ids)
        return [
            # Alone, some tokens are written without the space before them; the chosen one is told as it stands.
            TokenText(text, logprob, tuple((text if it == chosen else write([it]), value) for it, value in most))
            for chosen, text, logprob, most in zip(new.ids, written, new.logprobs or (), likeliest, strict=False)
        ]

    async def _beams(self, inputs: Sequence[Any], parameters: dict[str, Any]) -> list[Any]:
        """Answer with several beams of one search, which no engine tells apart."""
        for engine in self._engines:
            if isinstance(engine, StaticEngine):
                texts = TextGeneration(self.language, engine.model)
                requests = [{"input": each, "parameters": parameters} for each in inputs]
                return await engine.alone(partial(texts.answer, requests))
        raise InvalidRequest([{"location": ["parameters", "num_beams"], "message": "must be 1 here"}])


def generator_of(language: Language, model: Any, engine: str = "auto", cache_tokens: int | None = None) -> Generator:
    """Put the engines of a loaded model together. Blocks; the model is not used otherwise any more.

    Args:
        language: what it reads and writes.
        model: of Transformers.
        engine: ``auto`` or ``continuous``: continuous batching, where the model allows it, and static batches for
            requests that ask for what it cannot do; ``static``: only those.
        cache_tokens: tokens that continuous batching keeps in memory; None for as many as is sensible.

    Raises:
        HandlerInvalid: ``continuous`` was asked for, and the model does not allow it.
    """
    eos = language.ends(model)
    precision = language.source.precision
    engines: list[Engine] = []
    if engine != "static":
        reason = _obstacle(language, model)
        if reason is None:
            try:
                engines.append(ContinuousEngine(model, eos, language.context, cache_tokens))
            # Transformers has no error of its own for models that its manager does not take; these are what it raises.
            except (ValueError, AttributeError, NotImplementedError) as error:
                reason = f"Transformers refuses it: {' '.join(str(error).split())[:200]}"
        if reason is not None and engine == "continuous":
            raise HandlerInvalid(
                "huggingface", f"the model {language.source.name!r} cannot be batched continuously: {reason}"
            )
        if reason is not None:
            logger.warning("%s is answered in static batches: %s.", language.source.name, reason)
    pad = language.tokenizer.pad_token_id
    engines.append(StaticEngine(model, precision, pad, eos, encodes=language.encodes, context=language.context))
    return Generator(language, engines, model.generation_config)


def tell_of_what_is_not_done(language: Language, own: GenerationConfig) -> None:
    """Log what a model's configuration asks for, where there are no static batches to do it."""
    if names := beyond(own):
        logger.warning(
            "The configuration of %s asks for %s, which is not done.", language.source.name, ", ".join(names)
        )


def _obstacle(language: Language, model: Any) -> str | None:
    """Say why a model cannot be batched continuously, where that is known before it is tried."""
    if language.encodes:
        return "it has an encoder"
    if language.source.precision.autocast is not None:
        return "autocast_dtype is set"
    if names := beyond(model.generation_config):
        return f"its own configuration asks for {', '.join(names)}"
    if getattr(model, "hf_device_map", None) and len(set(model.hf_device_map.values())) > 1:
        return "it is spread over several GPUs; tensor_parallel divides it in another way"
    return None
