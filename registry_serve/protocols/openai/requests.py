"""What clients of OpenAI's format may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from registry_serve.errors import InvalidRequest
from registry_serve.generation.parameters import AS_MANY_AS_FIT, MOST_ANSWERS
from registry_serve.protocols.openai.values import Content, Stops, Texts, Unused
from registry_serve.signature import Request, decode, fault

_SENTENCES = {"missing": "is required", "extra_forbidden": "is unknown here"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


class StreamOptions(_Model):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Model):
    """Plain text, and nothing else."""

    type: Literal["text"]


class Asked(_Model, ABC):
    """What both kinds of requests have in common. Null counts as not given.

    Attributes:
        model: what answers.
        n: how many answers there are to each prompt.
        stop: texts that end an answer, each before it comes up.
        user: of no meaning here, like the next five.
        top_k: from here on not OpenAI's, but taken by many servers of this format; see ``GenerationParameters``.
    """

    #: How many new tokens there may be where a request says nothing.
    default_tokens: ClassVar[int]

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=128)
    stop: Stops = ()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    seed: int | None = Field(None, ge=0, lt=2**62)
    frequency_penalty: Unused = 0
    presence_penalty: Unused = 0
    logit_bias: Unused = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    ignore_eos: bool | None = None

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Parse and check a body.

        Raises:
            MalformedJSON: it is not JSON.
            InvalidRequest: it is no request.
        """
        value = decode(body)
        if not isinstance(value, dict):
            raise fault((), "must be an object")
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            # What is wrong with several fields together names one of them as its type.
            told = [(each["loc"] or (each["type"],), _SENTENCES.get(each["type"]) or each["msg"]) for each in faults]
            raise InvalidRequest(
                [{"location": [*place], "message": said.replace("Input should", "must")} for place, said in told]
            ) from None

    def requests(self) -> list[Request]:
        """Return a request for each answer: all of the first prompt, then all of the second.

        Raises:
            InvalidRequest: there are too many.
        """
        if len(self.inputs) * self.n > MOST_ANSWERS:
            raise fault(("n",), f"asks for more than {MOST_ANSWERS} answers, over all prompts; send several requests")
        parameters, seed = self.parameters(), self.seed
        seeds = [{} if seed is None else {"seed": seed + copy} for copy in range(self.n)]
        return [Request([each], {**parameters, **drawn}, 1, texts=True) for each in self.inputs for drawn in seeds]

    def parameters(self) -> dict[str, Any]:
        """Return the ``GenerationParameters`` of every answer, but for the seed."""
        own = {
            "min_p": self.min_p,
            "min_new_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
            "logprobs": self.likeliest,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "stop": list(self.stop) or None,
        }
        return {
            "max_new_tokens": self.most_tokens or self.default_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "return_full_text": False,
            **{name: value for name, value in own.items() if value is not None},
        }

    @property
    @abstractmethod
    def inputs(self) -> Sequence[str | list[dict[str, str]]]:
        """The texts or conversations to go on with."""

    @property
    def most_tokens(self) -> int | None:
        """How many new tokens there may be, if the request says."""
        return self.max_tokens

    @property
    @abstractmethod
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens to tell at each place; None to tell no probabilities."""

    @property
    def echoes(self) -> bool:
        """Whether the prompt stands before each answer."""
        return False


class CompletionRequest(Asked):
    """The body of ``POST /v1/completions``.

    Attributes:
        prompt: a text, or several.
        logprobs: how many of the likeliest tokens to tell at each place.
        echo: whether the prompt stands before each answer.
        best_of: as many as ``n``: no answer is thrown away.
        suffix: cannot be used.
    """

    default_tokens = 16

    prompt: Texts
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None
    suffix: Unused = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.best_of is not None and self.best_of != self.n:
            raise PydanticCustomError("best_of", "must be 1, or the same as n")
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError("echo", "cannot be used with logprobs: a prompt's are not computed")
        return self

    @property
    def inputs(self) -> Sequence[str | list[dict[str, str]]]:
        """The prompts."""
        return self.prompt

    @property
    def likeliest(self) -> int | None:
        """As many as asked for."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """As asked for."""
        return self.echo


class Message(_Model):
    """One message of a conversation. What an answer's message has besides may be sent back with it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: Unused = None
    annotations: Unused = None
    audio: Unused = None
    function_call: Unused = None
    tool_calls: Unused = None


class ChatRequest(Asked):
    """The body of ``POST /v1/chat/completions``.

    Attributes:
        messages: the conversation.
        max_completion_tokens: another name of ``max_tokens``.
        logprobs: whether to tell the probability of each token.
        top_logprobs: how many of the likeliest tokens to tell besides, at each place.
        response_format: text.
        tools: cannot be used, like the next four.
        tool_choice: ``none`` is taken.
    """

    default_tokens = AS_MANY_AS_FIT

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Unused = None
    functions: Unused = None
    audio: Unused = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "needs logprobs to be true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "is another name of max_completion_tokens: send one of them")
        return self

    @property
    def inputs(self) -> Sequence[str | list[dict[str, str]]]:
        """The conversation; chat templates know no developers."""
        return [[_plain(each) for each in self.messages]]

    @property
    def most_tokens(self) -> int | None:
        """By either name."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """None where no probabilities are asked for."""
        return self.top_logprobs if self.logprobs else None


def _plain(message: Message) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.content}


#: Names of ``GenerationParameters``, and what they are called in this format.
_NAMES: Mapping[str, str] = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


def in_its_words(error: InvalidRequest, asked: Asked) -> InvalidRequest:
    """Return what a model found wrong, with the places that the client knows."""
    given = "prompt" if isinstance(asked, CompletionRequest) else "messages"

    def place(location: Sequence[str | int]) -> list[str | int]:
        if location[:1] == ["parameters"]:
            return [_NAMES.get(str(each), each) for each in location[1:]]
        return [given, *location[2:]] if location[:1] == ["inputs"] else [*location]

    faults = [{"location": place(each["location"]), "message": each["message"]} for each in error.errors]
    return InvalidRequest(faults, error.given["beyond"])
