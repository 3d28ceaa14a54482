"""Model handlers as loaded models."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

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


def load_handler(spec: HandlerSpec, *, takes_body: bool) -> HandlerModel:
    """Download what a handler needs, and build it. Blocks; call it from the thread that will call the handler.

    Raises:
        HandlerInvalid: the handler cannot be built.
        DownloadFailed: what it needs cannot be downloaded.
    """
    handler = build(spec)
    kind = StreamingHandlerModel if streams(type(handler)) else HandlerModel
    return kind(handler, takes_body=takes_body)
