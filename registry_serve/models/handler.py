"""Model handlers as loaded models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any

from registry_serve.generation import Chunk
from registry_serve.handlers import HandlerSpec, build
from registry_serve.handlers.calls import answer_batch, answer_body, answer_piecewise, streams


class HandlerModel:
    """A built handler.

    Attributes:
        size_bytes: not known.
    """

    size_bytes = 0

    def __init__(self, handler: Any, *, takes_body: bool) -> None:
        self._handler: Any = handler
        self._takes_body = takes_body

    def predict(self, data: Any, params: dict[str, Any] | None) -> Any:
        """Answer a list of inputs with parameters for all of them, or the body of one request."""
        if self._takes_body:
            return answer_body(self._handler, data)
        return answer_batch(self._handler, data, params)

    def close(self) -> None:
        """Let the handler close what it has opened, and drop it."""
        handler, self._handler = self._handler, None
        close = getattr(handler, "close", None)
        if callable(close):
            close()


class StreamingHandlerModel(HandlerModel):
    """A built handler that can also answer piece by piece."""

    def stream(self, data: Any, params: dict[str, Any] | None) -> Generator[Any, None, None]:
        """Answer the only input of a request, or its body."""
        given = data if self._takes_body else data[0]
        pieces = answer_piecewise(self._handler, given, params, body=self._takes_body)
        if not isinstance(pieces, Generator):
            yield from pieces
            return
        with closing(pieces):
            yield from pieces


class GeneratingHandlerModel(HandlerModel):
    """A built handler with an engine that generates text."""

    def __init__(self, handler: Any, generator: Any) -> None:
        super().__init__(handler, takes_body=False)
        self._generator: Any = generator

    async def answer(self, data: Any, params: dict[str, Any] | None, progressed: Callable[[], None]) -> Any:
        """Answer a list of inputs with parameters for all of them."""
        return await self._generator.answer(data, params or {}, progressed)

    async def generate(self, data: Any, params: dict[str, Any] | None) -> AsyncGenerator[Chunk, None]:
        """Answer the only input of a request."""
        async with aclosing(self._generator.generate(data[0], params or {})) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more."""
        return bool(self._generator.lost)

    def engine_status(self) -> dict[str, Any]:
        """Return what its engines do."""
        status: dict[str, Any] = self._generator.status()
        return status

    def close(self) -> None:
        """End the engines, then close the handler."""
        self._generator.close()
        super().close()


def load_handler(spec: HandlerSpec, *, takes_body: bool) -> HandlerModel:
    """Download what a handler needs, and build it. Blocks; call it from the thread that will call the handler.

    Raises:
        HandlerInvalid: the handler cannot be built.
        DownloadFailed: what it needs cannot be downloaded.
    """
    handler = build(spec)
    generator = _start_engine(handler)
    if generator is not None:
        return GeneratingHandlerModel(handler, generator)
    kind = StreamingHandlerModel if streams(type(handler)) else HandlerModel
    return kind(handler, takes_body=takes_body)


def _start_engine(handler: Any) -> Any:
    """Return what generates for a handler, None where it has nothing of that kind."""
    return handler.start_engine() if callable(getattr(type(handler), "start_engine", None)) else None
