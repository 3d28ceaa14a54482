"""What a request may ask of text generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from registry_serve.errors import InvalidRequest
from registry_serve.generation import Settings

if TYPE_CHECKING:
    from transformers import GenerationConfig

#: A ``max_new_tokens`` that no context is as long as: the answer may be as long as the model and its engine can hold.
AS_MANY_AS_FIT = 2**31 - 1

_PLACE = "parameters"
#: What leaves the likelihoods as they are.
_UNUSED = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "typical_p": 1.0}


#: Answers that one request may ask for, over all of its inputs.
MOST_ANSWERS = 1024
#: Below it, what is not the likeliest token is never drawn, and numbers overflow.
_COLDEST = 1e-3


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class GenerationParameters(BaseModel):
    """The parameters of one request, of the names that Transformers gives them. Null counts as not given.

    What is neither given nor has a default here is as the model's own ``generation_config`` says.

    Attributes:
        max_new_tokens: how many tokens are added at the most; fewer where the model's context ends before.
        max_length: how many tokens prompt and answer have together at the most; of an encoder-decoder the answer.
        do_sample: false always takes the likeliest token, and so does a temperature of 0.
        num_return_sequences: how many texts to return, also called ``n``; above 1, each output is a list.
        stop: a text, or several; the answer ends before the first that comes up.
        seed: the same seed gives the same answer; requests with one are computed one by one.
        return_full_text: whether the prompt stands before the answer.
        ignore_eos: whether the answer goes on where the model would end it.
        logprobs: how many of the likeliest tokens to tell at each place, besides the chosen one's probability; only
            clients of OpenAI's format are told.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_new_tokens: int = Field(256, ge=1)
    max_length: int | None = Field(None, ge=1)
    min_new_tokens: int | None = Field(None, ge=0)
    do_sample: bool = True
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    num_beams: int = Field(1, ge=1, le=64)
    length_penalty: float | None = Field(None, ge=-100, le=100, allow_inf_nan=False)
    early_stopping: bool | None = None
    num_return_sequences: int = Field(1, ge=1, le=64, validation_alias=AliasChoices("num_return_sequences", "n"))
    use_cache: bool = True
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_several)] = Field(
        (), validation_alias=AliasChoices("stop", "stop_strings")
    )
    seed: int | None = Field(None, ge=0, lt=2**63)
    return_full_text: bool = True
    ignore_eos: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> GenerationParameters:
        """Check what a request gave.

        Raises:
            InvalidRequest: a name or a value is unknown.
        """
        try:
            return cls.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise InvalidRequest(
                [{"location": [_PLACE, *each["loc"]], "message": _message(each["type"], each["msg"])} for each in found]
            ) from None

    @model_validator(mode="after")
    def _answers_differ(self) -> GenerationParameters:
        if self.num_return_sequences > 1 and not self.samples and self.num_beams < self.num_return_sequences:
            raise PydanticCustomError("n", "ask for several texts (n) without sampling, or as many num_beams")
        return self

    @model_validator(mode="after")
    def _beams_tell_no_probabilities(self) -> GenerationParameters:
        if self.logprobs is not None and self.num_beams > 1:
            raise PydanticCustomError("logprobs", "log probabilities are not told of beams")
        return self

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn by chance."""
        return self.do_sample and self.temperature >= _COLDEST

    def settings(self) -> dict[str, Any]:
        """Return what ``generate`` is configured with, but for the number of new tokens."""
        names = ("min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping")
        chosen = {name: getattr(self, name) for name in names}
        drawn = {name: getattr(self, name) for name in ("top_k", "min_p", "typical_p")}
        given = {
            name: value for name, value in {**chosen, **(drawn if self.samples else {})}.items() if value is not None
        }
        # Without sampling, what a model's own configuration says about it would only raise warnings.
        sampling = {"temperature": self.temperature, "top_p": self.top_p} if self.samples else _UNUSED
        return {
            **given,
            **sampling,
            "do_sample": self.samples,
            "num_beams": self.num_beams,
            "num_return_sequences": self.num_return_sequences,
            "use_cache": self.use_cache,
            "stop_strings": list(self.stop) or None,
        }

    def engine_settings(self, new_tokens: int, own: GenerationConfig) -> Settings:
        """Return what an engine is asked for.

        Args:
            new_tokens: how many there may be.
            own: the model's configuration, for what the request leaves open.
        """
        chosen = self.top_k if self.top_k is not None else own.top_k
        names = ("min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping")
        others = {name: getattr(self, name) for name in (*names, *(("min_p", "typical_p") if self.samples else ()))}
        if self.repetition_penalty is None and own.repetition_penalty not in (None, 1.0):
            others["repetition_penalty"] = float(own.repetition_penalty)
        if self.samples and self.min_p is None and own.min_p is not None:
            others["min_p"] = float(own.min_p)
        if self.num_beams > 1:
            others["num_beams"] = self.num_beams
        return Settings(
            max_new_tokens=new_tokens,
            samples=self.samples,
            temperature=self.temperature if self.samples else 1.0,
            top_p=self.top_p if self.samples else 1.0,
            top_k=(chosen or None) if self.samples else None,
            ignore_eos=self.ignore_eos,
            seed=self.seed if self.samples else None,
            logprobs=self.logprobs,
            others={name: value for name, value in others.items() if value is not None},
        )


def _message(kind: str, said: str) -> str:
    if kind == "extra_forbidden":
        return f"is unknown; there are {', '.join(GenerationParameters.model_fields)}"
    return said.replace("Input should", "should")
