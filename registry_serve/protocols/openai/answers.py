"""The answers of OpenAI's format: whole, and piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from registry_serve.generation import Chunk, FinishReason, TokenText


@dataclass
class Choice:
    """One answer, as far as it has come.

    Attributes:
        text: of it.
        logprobs: of its tokens; None where they were not asked for.
        reason: why it has ended; None while it goes on.
        prompt_tokens: tokens of its prompt.
        tokens: its own tokens.
    """

    text: str = ""
    logprobs: list[TokenText] | None = None
    reason: FinishReason | None = None
    prompt_tokens: int = 0
    tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        """Take a further piece."""
        self.text += chunk.text
        if chunk.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *chunk.logprobs]
        self.reason = chunk.finish_reason or self.reason
        self.prompt_tokens, self.tokens = chunk.prompt_tokens, chunk.generated_tokens


def usage(choices: Sequence[Choice], copies: int) -> dict[str, int]:
    """Count tokens: each prompt once, however many answers it has, and all tokens of all answers."""
    prompts = sum(choice.prompt_tokens for choice in choices[::copies])
    answers = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompts, "completion_tokens": answers, "total_tokens": prompts + answers}


class Format(Protocol):
    """How the answers of one path look.

    Attributes:
        prefix: of the answer's id.
        whole: ``object`` of an answer that comes at once.
        piece: ``object`` of each part of an answer that comes piece by piece.
    """

    prefix: str
    whole: str
    piece: str

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return one of the answers."""

    def pieces(self, index: int, chunk: Chunk, before: Choice, *, first: bool) -> list[dict[str, Any]]:
        """Return what a chunk adds to one of the answers, in one part or several; perhaps none.

        Args:
            index: of the answer.
            chunk: what has come.
            before: the answer as it was before.
            first: whether it is the first chunk of this answer.
        """


class _Completions:
    prefix = "cmpl-"
    whole = "text_completion"
    piece = "text_completion"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return self._choice(index, choice.text, choice.logprobs, 0, choice.reason)

    def pieces(self, index: int, chunk: Chunk, before: Choice, *, first: bool) -> list[dict[str, Any]]:
        if not (chunk.text or chunk.logprobs or chunk.finish_reason):
            return []
        return [self._choice(index, chunk.text, chunk.logprobs, len(before.text), chunk.finish_reason)]

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenText] | None, offset: int, reason: str | None
    ) -> dict[str, Any]:
        told = None if logprobs is None else _by_column(logprobs, offset)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}


class _Chat:
    prefix = "chatcmpl-"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": _by_token(choice.logprobs),
            "finish_reason": choice.reason,
        }

    def pieces(self, index: int, chunk: Chunk, before: Choice, *, first: bool) -> list[dict[str, Any]]:
        deltas: list[tuple[dict[str, str], Sequence[TokenText] | None, str | None]] = []
        if first:
            deltas.append(({"role": "assistant", "content": ""}, None, None))
        if chunk.text or chunk.logprobs:
            deltas.append(({"content": chunk.text}, chunk.logprobs, None))
        if chunk.finish_reason:
            deltas.append(({}, None, chunk.finish_reason))
        return [
            {"index": index, "delta": delta, "logprobs": _by_token(logprobs), "finish_reason": reason}
            for delta, logprobs, reason in deltas
        ]


COMPLETIONS: Format = _Completions()
CHAT: Format = _Chat()


@dataclass(frozen=True)
class Head:
    """What every part of an answer begins with."""

    id: str
    created: int
    model: str

    def with_(self, kind: str, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an answer, or a part of one."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


@dataclass
class Parts:
    """The parts of an answer that comes piece by piece.

    Attributes:
        choices: how far each answer has come.
    """

    form: Format
    head: Head
    tells_usage: bool
    choices: list[Choice]
    _begun: set[int] = field(default_factory=set)

    def of(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """Return what to send of a chunk."""
        choice, first = self.choices[index], index not in self._begun
        self._begun.add(index)
        pieces = self.form.pieces(index, chunk, choice, first=first)
        choice.add(chunk)
        more = {"usage": None} if self.tells_usage else {}
        return [self.head.with_(self.form.piece, [piece], **more) for piece in pieces]

    def usage(self, copies: int) -> list[dict[str, Any]]:
        """Return the last part, where the client wants to know what the answer has cost."""
        if not self.tells_usage:
            return []
        return [self.head.with_(self.form.piece, [], usage=usage(self.choices, copies))]


def _by_column(tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
    offsets = []
    for each in tokens:
        offsets.append(offset)
        offset += len(each.text)
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [dict(each.likeliest) for each in tokens],
        "text_offset": offsets,
    }


def _by_token(tokens: Sequence[TokenText] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    told = [
        {
            **_token(each.text, each.logprob),
            "top_logprobs": [_token(text, logprob) for text, logprob in each.likeliest],
        }
        for each in tokens
    ]
    return {"content": told, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
