"""Generation: the requests of a version that generates text. They wait in no queue: its engine takes many at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from pydantic_core import to_json

from registry_serve.errors import PredictionFailed, RegistryServeError, TooManyTokens, VersionOverloaded
from registry_serve.generation import Chunk, EngineLost, RequestTooLarge
from registry_serve.generation.together import within
from registry_serve.models import GeneratingModel, ModelLost
from registry_serve.registry import ModelVersion
from registry_serve.signature import AnswerInvalid, Request, Schema


class Generation:
    """A generating model at work.

    Args:
        model: generates.
        version: that it is.
        schema: of its requests and answers.
        most: requests that may be under way.
    """

    def __init__(self, model: GeneratingModel, version: ModelVersion, schema: Schema, most: int) -> None:
        self.model = model
        self.requests = 0
        self._version = version
        self._schema = schema
        self._most = most
        self._under_way = 0
        self._waited_for = 0
        self._progressed_at = 0.0

    async def answer(self, request: Request, timeout_s: float | None) -> bytes:
        """Answer a request, encoded as JSON.

        Raises:
            VersionOverloaded: too many are under way.
            TimeoutError: the time is over.
            InvalidRequest: the model refuses the input.
            TooManyTokens: the engine can never hold it.
            PredictionFailed: the model failed.
            ModelLost: its engine cannot go on.
        """
        with self._at_work(), self._telling():
            data = self._data(request)
            with self._waiting():
                answered = await within(timeout_s, self.model.answer(data, request.params, self._progressed))
            return to_json(self._schema.answer(answered, request.count))

    async def pieces(self, request: Request, timeout_s: float | None) -> AsyncGenerator[tuple[bytes, Chunk], None]:
        """Answer a request of one row piece by piece: each text encoded as JSON, and what is known of it.

        Args:
            request: checked against the version's schema.
            timeout_s: how long to wait for each piece.

        Raises:
            Exception: as ``answer``.
        """
        with self._at_work(), self._telling():
            chunks = self.model.generate(self._data(request), request.params)
            async with aclosing(chunks):
                while True:
                    with self._waiting():
                        chunk = await within(timeout_s, _next(chunks))
                    if chunk is None:
                        return
                    yield to_json(chunk.text), chunk

    @property
    def busy_s(self) -> float:
        """For how many seconds the engine has not come on, although somebody waits for it."""
        return time.monotonic() - self._progressed_at if self._waited_for else 0.0

    def describe(self) -> dict[str, Any]:
        """Return what ``/model`` tells of it."""
        return {"requests": self.requests, "under_way": self._under_way, **self.model.engine_status()}

    def _data(self, request: Request) -> Any:
        return request.rows if request.texts else self._schema.data(request)

    def _progressed(self) -> None:
        self._progressed_at = time.monotonic()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        if self._under_way >= self._most:
            raise VersionOverloaded(self._most)
        self._under_way += 1
        self.requests += 1
        try:
            yield
        finally:
            self._under_way -= 1

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count somebody who waits for the engine, as opposed to an engine that waits for a slow reader."""
        if not self._waited_for:
            self._progressed()
        self._waited_for += 1
        try:
            yield
        finally:
            self._waited_for -= 1
            self._progressed()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Make errors of the data plane of whatever a model raises."""
        name, number = self._version.model, self._version.number
        try:
            yield
        except EngineLost as error:
            raise ModelLost from error
        except RequestTooLarge as error:
            raise TooManyTokens(*error.args) from error
        except AnswerInvalid as error:
            raise PredictionFailed(name, number, error.args[0]) from error
        except (RegistryServeError, TimeoutError):
            raise
        except Exception as error:
            raise PredictionFailed(name, number, "raised an error") from error


async def _next(chunks: AsyncGenerator[Chunk, None]) -> Chunk | None:
    # An exception that ends iterations cannot be raised in a task.
    return await anext(chunks, None)
