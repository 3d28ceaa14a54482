"""Text generation: what every engine is asked for, and what it answers.

| module         | what                                                                                   |
|----------------|----------------------------------------------------------------------------------------|
| ``continuous`` | the engine for decoders: Transformers' continuous batching, behind one adapter          |
| ``static``     | the engine for the rest, such as T5 or beam search: requests that have gathered go together |
| ``vllm``       | vLLM, where it is installed                                                              |
| ``ranks``      | one model on several processes, each with a part of every layer                          |
| ``generator``  | texts in, texts out, by one of these engines                                             |

Torch and Transformers are imported by these modules, not by this one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Settings:
    """How one answer is generated; values are checked before.

    Attributes:
        max_new_tokens: how many tokens are added at the most.
        samples: whether tokens are drawn by chance; else the likeliest is taken.
        temperature: above 0; of no meaning without sampling, like the next two.
        top_p: draw among the likeliest tokens that have so much of the probability together.
        top_k: draw among so many of the likeliest tokens; None for any number.
        ignore_eos: whether the model's token for the end does not end the answer.
        seed: the same seed gives the same answer.
        logprobs: for how many of the likeliest tokens, at each place, to tell log probabilities, besides the one of
            the token itself; None to tell none.
        others: further keywords of Transformers' ``generate``, by name, such as ``num_beams``.
    """

    max_new_tokens: int
    samples: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    others: Mapping[str, Any] = field(default_factory=dict)


class Likelihood(NamedTuple):
    """A token and its natural log probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Tokens:
    """New tokens of one answer.

    Attributes:
        ids: of the tokens, without the one that ended the answer.
        finish_reason: ``stop`` where the model ended the answer, ``length`` where the limit did; None while it goes on.
        logprobs: of each of ``ids``, if asked for.
        likeliest: for each of ``ids`` the likeliest tokens at its place, if asked for.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[float, ...] | None = None
    likeliest: tuple[tuple[Likelihood, ...], ...] | None = None


class EngineLost(Exception):
    """The engine cannot go on, and whoever holds it has to be replaced: a process of it has ended, say."""


class RequestTooLarge(Exception):
    """Prompt and answer together do not fit into the engine. ``args``: how many tokens they have, how many it holds."""


class EngineFailed(Exception):
    """The engine failed, in this request or in all that it held. It takes others again."""


class Engine(Protocol):
    """Generates for many at a time. All methods belong to one event loop, but for ``close``.

    Attributes:
        name: of its kind, such as ``continuous``.
    """

    name: str

    @property
    def capacity(self) -> int | None:
        """How many tokens one request may have, prompt and answer together; None for any number."""

    def takes(self, settings: Settings) -> bool:
        """Say whether it can generate like this."""

    def submit(self, prompt: list[int], settings: Settings) -> AsyncIterator[Tokens]:
        """Generate one answer. Closing the iterator early frees what the request holds.

        Args:
            prompt: its tokens, at least one.
            settings: how to generate.

        Raises:
            RequestTooLarge: it can never fit.
            EngineFailed: it failed.
            EngineLost: no request can be answered any more.
        """

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more."""

    def status(self) -> Mapping[str, Any]:
        """Return what the engine does, ready for JSON."""

    def close(self) -> None:
        """End its threads and processes. Blocks for a moment."""


@dataclass(frozen=True)
class TokenText:
    """One token of an answer with its log probability, for clients that ask for it.

    Attributes:
        text: how the token is written.
        logprob: natural.
        likeliest: texts and log probabilities of the likeliest tokens at this place.
    """

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer in text.

    Attributes:
        text: what it adds.
        prompt_tokens: tokens of the prompt.
        generated_tokens: tokens of the answer so far, the one that ended it included.
        finish_reason: in the last chunk ``stop`` or ``length``; None before.
        logprobs: of the tokens that it adds, if asked for.
    """

    text: str
    prompt_tokens: int
    generated_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenText, ...] | None = None
