"""Completions over HTTP: one request read, answered and sent, until its client has left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from uuid import uuid4

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from registry_serve.dataplane import PARSE_INLINE_BYTES, Answer, DataPlane
from registry_serve.errors import InvalidRequest
from registry_serve.generation import Chunk
from registry_serve.protocols.openai.answers import Choice, Format, Head, Parts, usage
from registry_serve.protocols.openai.models import reference_of
from registry_serve.protocols.openai.requests import Asked, in_its_words
from registry_serve.protocols.prediction import agreed, send_json
from registry_serve.protocols.problems import openai_body
from registry_serve.protocols.reading import Read, until_left
from registry_serve.protocols.streaming import Form, event, send_stream
from registry_serve.signature import Request

#: As OpenAI sends them; its client raises what it finds under ``error``.
_EVENTS = Form(
    b"text/event-stream; charset=utf-8",
    piece=event,
    failure=lambda error, _: event(openai_body(error)),
    end=event(b"[DONE]"),
)

#: An answer's place among those of the request, the version that gives it, and a piece of it.
Piece = tuple[int, str, Chunk]


class Completions:
    """Answers ``POST`` requests for texts.

    Args:
        plane: answers them.
        kind: what their bodies are.
        form: of the answers.
    """

    def __init__(self, plane: DataPlane, kind: type[Asked], form: Format) -> None:
        self._plane = plane
        self._kind = kind
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await until_left(scope, receive, self._plane.limits, partial(self._answer, scope, send))

    async def _answer(self, scope: Scope, send: Send, read: Read) -> None:
        asking = _Asking(self._plane, self._kind, scope, read)
        async with aclosing(asking.pieces()) as pieces:
            first = await anext(pieces)  # before it nothing is sent, and it is known what was asked for
            asked = asking.asked
            head = Head(f"{self._form.prefix}{uuid4().hex}", int(time.time()), asked.model)
            choices = [Choice() for _ in range(len(asked.inputs) * asked.n)]
            if asked.stream:
                parts = Parts(self._form, head, asked.stream_options.include_usage, choices)
                await send_stream(scope, send, _EVENTS, _events(parts, asked.n, first, pieces))
                return
            async for place, _, chunk in _chained(first, pieces):
                choices[place].add(chunk)
        told = [self._form.choice(index, choice) for index, choice in enumerate(choices)]
        body = head.with_(self._form.whole, told, usage=usage(choices, asked.n))
        await send_json(send, to_json(body), first[1])


class _Asking:
    """One request on its way.

    Attributes:
        asked: what the body says, once it is read.
    """

    asked: Asked

    def __init__(self, plane: DataPlane, kind: type[Asked], scope: Scope, read: Read) -> None:
        self._plane = plane
        self._kind = kind
        self._scope = scope
        self._read = read

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Answer it."""
        begun = set()
        try:
            async with aclosing(self._plane.generate_each(self._requests)) as answers:
                async for place, answer in answers:
                    chunk = _chunk(answer)
                    if self.asked.echoes and place not in begun:
                        begun.add(place)
                        chunk = replace(chunk, text=f"{self.asked.inputs[place // self.asked.n]}{chunk.text}")
                    yield place, answer.version, chunk
        except InvalidRequest as error:
            if not hasattr(self, "asked"):
                raise
            raise in_its_words(error, self.asked) from error

    async def _requests(self) -> tuple[str | None, Sequence[Request]]:
        body = await self._read()
        large = len(body) > PARSE_INLINE_BYTES
        asked = await asyncio.to_thread(self._kind.of, body) if large else self._kind.of(body)
        reference = reference_of(asked.model, self._plane.contract.default.model)
        self.asked = asked
        return agreed(self._scope, reference, "model"), asked.requests()


def _chunk(answer: Answer) -> Chunk:
    assert answer.chunk is not None  # only language models take requests of texts
    return answer.chunk


async def _events(
    parts: Parts, copies: int, first: Piece, pieces: AsyncIterator[Piece]
) -> AsyncIterator[tuple[str, bytes]]:
    async for place, version, chunk in _chained(first, pieces):
        for part in parts.of(place, chunk):
            yield version, event(to_json(part))
    for part in parts.usage(copies):
        yield first[1], event(to_json(part))


async def _chained(first: Piece, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for each in pieces:
        yield each
