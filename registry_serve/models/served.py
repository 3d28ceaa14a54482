"""ServedModel: a loaded version at work, with the one thread that calls it and the queue before it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from functools import partial
from typing import Any, NamedTuple

from pydantic_core import to_json

from registry_serve.batching import Batcher, Waiting
from registry_serve.errors import (
    GenerationUnsupported,
    InvalidRequest,
    LoadFailed,
    PredictionFailed,
    RegistryServeError,
    StreamingUnsupported,
)
from registry_serve.generation import Chunk
from registry_serve.models import GeneratingModel, LoadedModel, ModelLost, RefusedByModel, StreamingModel
from registry_serve.models.generating import Generation
from registry_serve.models.merging import Merging, find_out
from registry_serve.models.streams import Emit, Stopped, Stream
from registry_serve.policies import BatchPolicy
from registry_serve.registry import ModelVersion
from registry_serve.signature import AnswerInvalid, Request, Schema, mismatch

logger = logging.getLogger(__name__)

Hold = Callable[[], Callable[[], None]]


class _Call(NamedTuple):
    request: Request
    hold: Hold
    emit: Emit | None = None


class ServedModel:
    """A loaded version.

    Everything that touches the model happens in its own thread: frameworks exist whose models must be called by the
    thread that loaded them, and few promise that two threads may call at once.

    Attributes:
        version: which version it is.
        merging: which of its requests may share one call.
    """

    def __init__(self, version: ModelVersion, schema: Schema, policy: BatchPolicy) -> None:
        self.version = version
        self.schema = schema
        self.merging = Merging(frozenset(), "it is not loaded yet")
        self.undeclared_answers = 0
        self._policy = policy
        self._model: LoadedModel | None = None
        self._generation: Generation | None = None
        self._outputs = version.card.signature.outputs if version.card.signature else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{version.model}-{version.number}")
        self._batcher: Batcher[_Call, bytes] = Batcher(self._compute, self._thread, policy, lambda call: call.hold())

    async def load(self, load: Callable[[ModelVersion], LoadedModel], known: Merging | None) -> None:
        """Load the model, and find out which requests may be merged.

        Args:
            load: fetches and loads a version; blocks.
            known: what an earlier load of the same version found out.

        Raises:
            LoadFailed: it cannot be loaded.
            RegistryServeError: what ``load`` raised of our own.
        """
        started = time.monotonic()
        try:
            await self._in_thread(partial(self._load, load, known))
        except BaseException as error:
            await self.close()
            name, number = self.version.model, self.version.number
            logger.error("Version %s of %s cannot be loaded.", number, name, exc_info=error)
            if isinstance(error, RegistryServeError):
                raise
            raise LoadFailed(name, number, f"loading raised {type(error).__name__}") from error
        logger.info(
            "Loaded version %s of %s in %.2f s; requests are merged: %s.",
            self.version.number,
            self.version.model,
            time.monotonic() - started,
            self.merging,
        )

    async def predict(self, request: Request, hold: Hold, timeout_s: float | None) -> bytes:
        """Answer a request, encoded as JSON.

        Args:
            request: checked against the version's schema.
            hold: keeps the model open, for the time it computes, even if the caller leaves.
            timeout_s: how long to wait.

        Raises:
            VersionOverloaded: too many wait already.
            TimeoutError: the time is over.
            InvalidRequest: the model itself refused the input.
            PredictionFailed: the model raised, or its answer has no JSON form.
            ModelLost: the process of the model has ended.
        """
        if self._generation is not None:
            return await self._generation.answer(request, timeout_s)
        self._require_no_texts(request)
        # A request that fills a call by itself goes alone, and its group, which takes a look at each row, is not asked.
        alone = self.merging.groups == frozenset() or request.count >= self._policy.max_batch_size
        group = None if alone else self.schema.group(request)
        return await self._batcher.submit(
            _Call(request, hold),
            rows=request.count,
            size_bytes=request.size_bytes,
            group=group if self.merging.allows(group) else None,
            timeout_s=timeout_s,
        )

    async def generate(
        self, request: Request, hold: Hold, timeout_s: float | None
    ) -> AsyncGenerator[tuple[bytes, Chunk | None], None]:
        """Answer a request piece by piece, each encoded as JSON; of generated text, what is known of it, too.

        A model without an engine of its own computes nothing else meanwhile.

        Args:
            request: checked against the version's schema.
            hold: as in ``predict``.
            timeout_s: how long to wait for each piece.

        Raises:
            StreamingUnsupported: the model answers in one piece only.
            GenerationUnsupported: texts were asked for, and the model is no language model.
            Exception: as ``predict``.
        """
        if self._generation is not None:
            async with aclosing(self._generation.pieces(request, timeout_s)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        self._require_no_texts(request)
        if not isinstance(self._model, StreamingModel):
            raise StreamingUnsupported(self.version.model, self.version.number)
        stream = Stream(self._batcher.progressed, timeout_s)
        call = _Call(request, hold, stream.emit)
        answering = asyncio.ensure_future(self._batcher.submit(call, rows=request.count))
        answering.add_done_callback(lambda _: stream.end())
        try:
            async for piece in stream.pieces():
                yield piece, None
            await answering
        finally:
            # Whoever stops listening stops the model, at its next piece.
            stream.stop()
            answering.cancel()

    def _require_no_texts(self, request: Request) -> None:
        if request.texts:
            raise GenerationUnsupported(self.version.model, self.version.number)

    async def close(self) -> None:
        """Free the model and its thread."""
        try:
            await self._in_thread(self._close)
        finally:
            self._thread.shutdown(wait=False)

    @property
    def size_bytes(self) -> int:
        """How large the version is on disk; 0 where that is not known."""
        return getattr(self._model, "size_bytes", 0)

    @property
    def busy_s(self) -> float:
        """For how many seconds the model has been computing what it computes now."""
        return self._batcher.busy_s if self._generation is None else self._generation.busy_s

    @property
    def generates(self) -> bool:
        """Whether an engine of its own generates its answers."""
        return self._generation is not None

    @property
    def lost(self) -> bool:
        """Whether the model cannot answer any more, in this process."""
        return self._generation is not None and self._generation.model.lost

    @property
    def calls(self) -> int:
        """How often the model was called for requests."""
        return self._batcher.batches if self._generation is None else self._generation.requests

    def describe(self) -> dict[str, Any]:
        """Return what ``/model`` tells of a loaded version."""
        if self._generation is not None:
            return {"generation": self._generation.describe(), "size_bytes": self.size_bytes or None}
        return {
            "batching": {
                "merges_requests": self.merging.groups != frozenset(),
                "reason": self.merging.reason,
                "calls": self.calls,
                "waiting": len(self._batcher),
            },
            "size_bytes": self.size_bytes or None,
        }

    # --- in the model's thread ---------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _load(self, load: Callable[[ModelVersion], LoadedModel], known: Merging | None) -> None:
        self._model = load(self.version)
        if isinstance(self._model, GeneratingModel):
            self._generation = Generation(self._model, self.version, self.schema, self._policy.max_waiting)
            self.merging = Merging(frozenset(), "its engine takes many requests at a time")
            return
        self.merging = known or find_out(self.version, self.schema, self._policy, self._answer)

    def _close(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _compute(self, batch: Sequence[Waiting[_Call, bytes]]) -> Sequence[bytes | BaseException]:
        if len(batch) == 1:
            return [self._alone(batch[0])]
        try:
            together = self._together([waiting.item.request for waiting in batch])
        except BaseException:  # noqa: BLE001 - whose fault it is, each request will show alone
            outcomes = [self._alone(waiting) for waiting in batch]
            if not any(isinstance(outcome, BaseException) for outcome in outcomes):
                self._stop_merging("it raised on rows together that it answered alone")
            return outcomes
        return together if together is not None else [self._alone(waiting) for waiting in batch]

    def _together(self, requests: Sequence[Request]) -> list[bytes | BaseException] | None:
        """Answer several requests in one call, or None where its answer cannot be told apart."""
        merged = self.schema.merge(requests)
        answered = self._answer(merged)
        if not isinstance(answered, list) or len(answered) != merged.count:
            self._stop_merging("it does not answer with one value for each row")
            return None
        self._compare(answered)
        encoded: list[bytes | BaseException] = []
        start = 0
        for request in requests:
            encoded.append(to_json(answered[start : start + request.count]))
            start += request.count
        return encoded

    def _alone(self, waiting: Waiting[_Call, bytes]) -> bytes | BaseException:
        if not waiting.wanted:
            return asyncio.CancelledError()
        name, number = self.version.model, self.version.number
        try:
            if waiting.item.emit is not None:
                return self._piecewise(waiting.item.request, waiting.item.emit)
            answered = self._answer(waiting.item.request)
            self._compare(answered)
            return to_json(answered)
        except (RegistryServeError, ModelLost, TimeoutError) as error:
            return error
        except BaseException as error:  # noqa: BLE001 - one answer that cannot be told must not fail the others
            failed = PredictionFailed(name, number, "answered something that has no JSON form")
            failed.__cause__ = error
            return failed

    def _piecewise(self, request: Request, emit: Emit) -> bytes:
        """Call the model, and send each piece of its answer off; what is left to answer at the end is nothing."""
        assert isinstance(self._model, StreamingModel)
        try:
            with closing(self._model.stream(self.schema.data(request), request.params)) as pieces:
                for piece in pieces:
                    emit(to_json(self.schema.answer([piece], 1)[0]))
        except Stopped:
            raise TimeoutError from None  # told to a client that reads too slowly, if it ever reads on
        except RefusedByModel as refusal:
            raise self._refused(refusal) from refusal
        except RegistryServeError:
            raise
        except BaseException as error:
            raise PredictionFailed(self.version.model, self.version.number, "raised an error") from error
        return b""

    def _answer(self, request: Request) -> Any:
        """Call the model, and turn its answer into plain JSON values."""
        assert self._model is not None
        name, number = self.version.model, self.version.number
        try:
            prediction = self._model.predict(self.schema.data(request), request.params)
        except RefusedByModel as refusal:
            raise self._refused(refusal) from refusal
        except (ModelLost, RegistryServeError):
            raise
        except BaseException as error:
            # Whatever the model raises, SystemExit included, must not reach the event loop of the replica.
            raise PredictionFailed(name, number, "raised an error") from error
        try:
            answered = self.schema.answer(prediction, request.count)
        except AnswerInvalid as error:
            raise PredictionFailed(name, number, error.args[0]) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise PredictionFailed(name, number, "answered something that has no JSON form") from error
        return answered

    def _refused(self, refusal: RefusedByModel) -> InvalidRequest:
        name, number = self.version.model, self.version.number
        logger.info("Version %s of %s refused its input.", number, name, exc_info=refusal)
        message = "does not pass the model's own check of its input"
        return InvalidRequest([{"location": [], "message": message}])

    def _stop_merging(self, reason: str) -> None:
        """Merge no more, unless somebody has decided by hand that requests are merged."""
        if self._policy.mode == "auto":
            self.merging = Merging(frozenset(), reason)
            logger.warning("Version %s of %s: no more merging, %s.", self.version.number, self.version.model, reason)

    def _compare(self, answered: Any) -> None:
        difference = mismatch(answered, self._outputs)
        if difference is None:
            return
        self.undeclared_answers += 1
        if self.undeclared_answers == 1:
            logger.warning(
                "Version %s of %s answers otherwise than its signature declares: %s.",
                self.version.number,
                self.version.model,
                difference,
            )
