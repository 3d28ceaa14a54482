"""DataPlane: the way of every request, whatever protocol it comes by. No web, no Serve.

    reference ──► resolve ──► policy ──► contract ──► parse ──► lease ──► predict ──► encode
                   404          403         409      400, 422   500, 503   500, 504

Everything before the lease is metadata: a request that is refused there has loaded nothing and evicted nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
from pydantic_core import PydanticSerializationError, to_json

from registry_serve.cache import Lease, VersionCache
from registry_serve.contract import Contract
from registry_serve.description import describe
from registry_serve.errors import (
    Draining,
    InvalidRequest,
    LoadFailed,
    PredictionFailed,
    PredictionTimeout,
    RegistryServeError,
    SignatureConflict,
    TooManyRequests,
    VersionLoading,
    WarmUpFailed,
)
from registry_serve.models import LoadedModel, RefusedByModel
from registry_serve.policies import CachePolicy, Limits
from registry_serve.registry import ModelVersion, Resolver, VersionKey
from registry_serve.signature import Request, RequestSchema, answer, example_body, mismatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Larger bodies are parsed in a thread, so that the event loop goes on answering others meanwhile.
_PARSE_INLINE_BYTES = 64 * 1024
_KNOWN_VERSIONS = 512


@dataclass(frozen=True)
class Answer:
    """A version's answer.

    Attributes:
        version: the version that answered.
        body: JSON, encoded.
    """

    version: str
    body: bytes


@dataclass
class _Seat:
    """A loaded model and the one thread that loads, calls and closes it."""

    model: LoadedModel
    thread: ThreadPoolExecutor


@dataclass(frozen=True)
class _Served:
    """A version, what its requests look like, and what keeps it from answering."""

    version: ModelVersion
    schema: RequestSchema | None
    differences: Sequence[Mapping[str, Any]]


@dataclass
class Counts:
    """What happened since the replica started."""

    requests: int = 0
    answered: int = 0
    undeclared_answers: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class DataPlane:
    """All versions of one model that keep one contract.

    Args:
        contract: what the endpoint promises.
        resolver: finds the version that a reference means.
        load: fetches and loads a version; blocks.
        cache: how many versions stay loaded.
        limits: what one request may cost.
        on_ready: called with its key each time a version has been loaded.
    """

    def __init__(
        self,
        contract: Contract,
        resolver: Resolver,
        load: Callable[[ModelVersion], LoadedModel],
        cache: CachePolicy,
        limits: Limits,
        on_ready: Callable[[VersionKey], None] | None = None,
    ) -> None:
        self.contract = contract
        self.resolver = resolver
        self.limits = limits
        self.counts = Counts()
        self._load_model = load
        self._served: OrderedDict[VersionKey, _Served] = OrderedDict()
        self._pending = 0
        self._ready = False
        self._draining = False
        self._mismatched: set[VersionKey] = set()
        self.cache: VersionCache[VersionKey, _Seat] = VersionCache(self._close, cache, on_ready)

    @property
    def ready(self) -> bool:
        """Whether the default version is loaded and has answered its own input example."""
        return self._ready and not self._draining

    async def start(self) -> None:
        """Load the default version, keep it loaded, and let it answer its own input example.

        Raises:
            LoadFailed: it cannot be loaded.
            WarmUpFailed: it cannot answer.
        """
        default = self.contract.default
        schema = self._schema(default)
        await self.cache.pin(default.key, partial(self._load, default))
        example = default.card.input_example
        body = example_body(example, schema)
        if body is not None:
            try:
                # The first call may compile, allocate and download: it has no limit of its own.
                await self._predict(default, schema, schema.check(body), None)
            except RegistryServeError as error:
                raise WarmUpFailed(f"The default version cannot answer its own input example: {error}") from error
        elif example is not None:
            logger.warning("The input example of version %s fits no request; it is not used.", default.number)
        self._ready = True

    async def predict(self, reference: str | None, body: bytes | Callable[[], Awaitable[bytes]]) -> Answer:
        """Answer the body of a request.

        Args:
            reference: the version asked for: a number, ``latest`` or an alias; None or blank for the default.
            body: JSON, or what reads it: nothing is read of a request that finds no room.

        Raises:
            RegistryServeError: one of the errors above.
        """
        with self._admitted():
            content = body if isinstance(body, bytes) else await body()
            version, schema = await self._find(reference)
            inline = len(content) <= _PARSE_INLINE_BYTES
            request = schema.parse(content) if inline else await asyncio.to_thread(schema.parse, content)
            return Answer(version.number, await self._predict(version, schema, request, self.limits.request_timeout_s))

    async def call(self, reference: str | None, rows: Any, params: Mapping[str, Any] | None) -> bytes:
        """Answer a caller from Python, whose rows and params are plain values as JSON would give them."""
        with self._admitted():
            version, schema = await self._find(reference)
            request = await asyncio.to_thread(schema.check_call, rows, params)
            return await self._predict(version, schema, request, self.limits.request_timeout_s)

    async def describe(self) -> dict[str, Any]:
        """Return what there is to know about the model, its versions and this replica, ready for JSON."""
        states = {key.number: state for key, state in self.cache.states().items()}
        return await describe(self.contract, self.resolver, states) | {
            "replica": {
                "ready": self.ready,
                "max_models": self.cache.policy.max_models,
                "loads": self.cache.loads,
                "evictions": self.cache.evictions,
                "pending_requests": self._pending,
                "limits": asdict(self.limits),
                **asdict(self.counts),
            }
        }

    async def aclose(self) -> None:
        """Refuse new requests, let those under way finish, close all models."""
        self._draining = True
        await self.cache.aclose()
        await self.resolver.aclose()

    # --- before the cache --------------------------------------------------------------------------------------------

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        self.counts.requests += 1
        try:
            if self._draining:
                raise Draining
            if self._pending >= self.limits.max_pending_requests:
                raise TooManyRequests(self.limits.max_pending_requests)
            self._pending += 1
            try:
                yield
            finally:
                self._pending -= 1
            self.counts.answered += 1
        except RegistryServeError as error:
            self.counts.errors[error.code] = self.counts.errors.get(error.code, 0) + 1
            raise

    async def _find(self, reference: str | None) -> tuple[ModelVersion, RequestSchema]:
        version = await self.resolver.resolve(reference)
        return version, self._schema(version)

    def _schema(self, version: ModelVersion) -> RequestSchema:
        """Hold a version against the contract, once for each revision of it."""
        served = self._served.get(version.key)
        if served is None:
            differences = self.contract.differences(version)
            schema = None if differences else self.contract.schema_of(version)
            served = self._served[version.key] = _Served(version, schema, differences)
            if len(self._served) > _KNOWN_VERSIONS:
                self._served.popitem(last=False)
        else:
            self._served.move_to_end(version.key)
        if served.schema is None:
            raise SignatureConflict(version.model, version.number, self.contract.default.number, served.differences)
        return served.schema

    # --- the model ---------------------------------------------------------------------------------------------------

    async def _predict(
        self, version: ModelVersion, schema: RequestSchema, request: Request, limit_s: float | None
    ) -> bytes:
        started, loaded = time.monotonic(), False
        try:
            with anyio.fail_after(limit_s):
                async with self.cache.lease(version.key, partial(self._load, version)) as lease:
                    loaded = True
                    return await _on_thread(lease, partial(self._compute, lease.model.model, version, schema, request))
        except TimeoutError:
            if loaded:
                raise PredictionTimeout(version.model, version.number, limit_s) from None
            raise VersionLoading(version.model, version.number, round(time.monotonic() - started, 1)) from None

    def _compute(self, model: LoadedModel, version: ModelVersion, schema: RequestSchema, request: Request) -> bytes:
        """Run the model and encode its answer; in the model's own thread."""
        declared = version.card.signature.outputs if version.card.signature else None
        try:
            prediction = model.predict(schema.inputs.data(request.rows), request.params)
        except RefusedByModel as refusal:
            logger.info("Version %s of %s refused its input.", version.number, version.model, exc_info=refusal)
            message = "does not pass the model's own check of its input"
            raise InvalidRequest([{"location": [], "message": message}]) from refusal
        except BaseException as error:
            # Whatever the model raises, SystemExit included, must not reach the event loop of the replica.
            raise PredictionFailed(version.model, version.number, "raised an error") from error
        try:
            answered = answer(prediction, request.count, declared)
            encoded = to_json(answered)
        except (TypeError, ValueError, RecursionError, PydanticSerializationError) as error:
            happened = "answered something that has no JSON form"
            raise PredictionFailed(version.model, version.number, happened) from error
        self._compare(version, mismatch(answered, declared))
        return encoded

    def _compare(self, version: ModelVersion, difference: str | None) -> None:
        if difference is None:
            return
        self.counts.undeclared_answers += 1
        if version.key not in self._mismatched:
            self._mismatched.add(version.key)
            logger.warning(
                "Version %s of %s answers otherwise than its signature declares: %s.",
                version.number,
                version.model,
                difference,
            )

    async def _load(self, version: ModelVersion) -> _Seat:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{version.model}-{version.number}")
        started = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(thread, self._load_model, version)
        except BaseException as error:
            thread.shutdown(wait=False)
            logger.error("Version %s of %s cannot be loaded.", version.number, version.model, exc_info=error)
            if isinstance(error, RegistryServeError):
                raise
            raise LoadFailed(version.model, version.number, f"loading raised {type(error).__name__}") from error
        logger.info("Loaded version %s of %s in %.2f s.", version.number, version.model, time.monotonic() - started)
        return _Seat(model, thread)

    @staticmethod
    async def _close(seat: _Seat) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(seat.thread, seat.model.close)
        finally:
            seat.thread.shutdown(wait=False)


async def _on_thread(lease: Lease[_Seat], work: Callable[[], T]) -> T:
    """Run work in the model's thread.

    A caller that leaves takes its work out of the queue; work that has begun keeps the model open until it ends.
    """
    loop = asyncio.get_running_loop()
    release = lease.extend()
    future = lease.model.thread.submit(work)
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(release))
    return await asyncio.wrap_future(future)
