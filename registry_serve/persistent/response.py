"""Response: what a persistent deployment answers to one prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from registry_serve.generation import Chunk

#: The reason that a piece of an answer has which is not its end.
GOES_ON = "none"


@dataclass(frozen=True)
class Response:
    """An answer, or a piece of one. Printed, it is its text.

    Attributes:
        generated_text: the text.
        prompt_length: tokens of the prompt.
        generated_length: tokens of the answer, the one that ended it included; in a piece: so far.
        finish_reason: ``stop`` where the model or a stop text ended the answer, ``length`` where a limit did; ``none``
            in a piece.
    """

    generated_text: str
    prompt_length: int
    generated_length: int
    finish_reason: str

    def __repr__(self) -> str:
        """Return the text."""
        return self.generated_text

    def to_msg_dict(self) -> dict[str, Any]:
        """Return the four fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_msg_dict(cls, fields: Mapping[str, Any]) -> Response:
        """Make one of the four fields."""
        return cls(**fields)


async def whole(chunks: AsyncGenerator[Chunk, None]) -> Response:
    """Return the answer that comes in pieces, once it is complete."""
    texts, last = [], Chunk("", 0, 0)
    async with aclosing(chunks):
        async for last in chunks:
            texts.append(last.text)
    return Response("".join(texts), last.prompt_tokens, last.generated_tokens, last.finish_reason or "length")
