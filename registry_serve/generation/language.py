"""Language: what a language model reads and writes, without its weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from registry_serve.errors import InvalidRequest
from registry_serve.generation.parameters import AS_MANY_AS_FIT, GenerationParameters
from registry_serve.generation.pieces import TokensAsText
from registry_serve.generation.pretrained import Source, limits
from registry_serve.generation.prompts import Prompt, Prompts

#: Tokens of an answer by a model that does not say how many it can have.
_LONGEST_IF_UNKNOWN = 16_384


class Language:
    """The tokenizer of a model, its context, and how its answers begin.

    Attributes:
        source: where the model comes from.
        encodes: whether an encoder reads the prompt, and the decoder's context is the answer's alone.
        tokenizer: of Transformers.
        context: how many tokens prompt and answer may have together; None where the model does not say.
        prompts: makes tokens of what requests hold.
    """

    def __init__(self, source: Source) -> None:
        config = source.config()
        self.source = source
        self.encodes = bool(config.is_encoder_decoder)
        self.tokenizer = source.tokenizer()
        self.context = next(iter(limits(config, self.tokenizer)), None)
        # A decoder's context must hold at least one token of the answer as well.
        most = self.context if self.encodes or self.context is None else self.context - 1
        self.prompts = Prompts(self.tokenizer, most)

    def weights(self, **options: Any) -> Any:
        """Load the model. Its own generation configuration fills up what requests leave open.

        Args:
            **options: further keywords of ``from_pretrained``.
        """
        kind = AutoModelForSeq2SeqLM if self.encodes else AutoModelForCausalLM
        model = self.source.model(kind, **options)
        own = model.generation_config
        own.pad_token_id = self.tokenizer.pad_token_id
        if own.eos_token_id is None:
            own.eos_token_id = self.tokenizer.eos_token_id
        own.max_length = None  # requests always say how many tokens are new
        # Guesses at several tokens in one step are for a single row. Told None, ``generate`` would ask the model.
        own.update(prompt_lookup_num_tokens=None, assistant_early_exit=None, use_mtp=None)
        return model

    def ends(self, model: Any) -> list[int]:
        """Return the tokens that end an answer of the model, loaded by ``weights``."""
        ends = model.generation_config.eos_token_id
        if ends is None:
            return []
        return [ends] if isinstance(ends, int) else list(ends)

    def new_tokens(self, prompt: Prompt, asked: GenerationParameters) -> int:
        """Return how many tokens an answer may have: as many as asked for, or as the context holds.

        Raises:
            InvalidRequest: the prompt alone has as many as prompt and answer may have together.
        """
        if asked.max_length is None:
            return self._new_tokens(prompt, asked)
        length = 0 if self.encodes else len(prompt.ids)
        if asked.max_length <= length:
            message = f"must be above the number of tokens of the prompt, {length}"
            raise InvalidRequest([{"location": ["parameters", "max_length"], "message": message}])
        return min(asked.max_length - length, self._new_tokens(prompt, asked))

    def _new_tokens(self, prompt: Prompt, asked: GenerationParameters) -> int:
        if self.encodes or self.context is None:
            if asked.max_new_tokens == AS_MANY_AS_FIT:
                # Nothing says what fits: the answer is as long as one that says nothing about it.
                return GenerationParameters().max_new_tokens
            return min(asked.max_new_tokens, self.context or _LONGEST_IF_UNKNOWN)
        return min(asked.max_new_tokens, self.context - len(prompt.ids))

    def beginning(self, prompt: Prompt, asked: GenerationParameters) -> str:
        """Return what an answer begins with before anything is generated."""
        return prompt.text if asked.return_full_text and not self.encodes else ""

    def text_of(self, prompt: Prompt) -> TokensAsText:
        """Return what writes the answer to a prompt."""
        return TokensAsText(self.tokenizer, [] if self.encodes else prompt.ids)
