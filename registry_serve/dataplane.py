"""DataPlane: the way of every request, whatever protocol it comes by. No web, no Serve.

    reference ──► resolve ──► policy ──► contract ──► parse ──► lease ──► queue ──► predict ──► encode
                   404          403         409      400, 422   500, 503   429     500, 504

Everything before the lease is metadata: a request that is refused there has loaded nothing and evicted nothing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from registry_serve.cache import VersionCache
from registry_serve.contract import Contract
from registry_serve.description import describe
from registry_serve.errors import (
    Draining,
    ModelProcessDied,
    PredictionTimeout,
    RegistryServeError,
    ReplicaStuck,
    SignatureConflict,
    TooManyRequests,
    VersionLoading,
    WarmUpFailed,
)
from registry_serve.leases import VersionState
from registry_serve.models import LoadedModel, ModelLost
from registry_serve.models.served import Merging, ServedModel
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.registry import ModelVersion, Resolver, VersionKey
from registry_serve.signature import Request, RequestSchema, example_body

logger = logging.getLogger(__name__)

#: Larger bodies are parsed in a thread, so that the event loop goes on answering others meanwhile.
_PARSE_INLINE_BYTES = 128 * 1024
_KNOWN_VERSIONS = 512
#: A load downloads gigabytes and compiles: it may take so many times as long as a call before it counts as stuck.
_LOADS_TAKE_LONGER = 10


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
class _Known:
    """A version held against the contract, and what its loads found out."""

    schema: RequestSchema | None
    differences: Sequence[Mapping[str, Any]]
    merging: Merging | None = None


@dataclass
class Counts:
    """What happened since the replica started."""

    requests: int = 0
    answered: int = 0
    calls: int = 0
    undeclared_answers: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, model: ServedModel) -> None:
        """Add what a model has counted itself."""
        self.calls += model.calls
        self.undeclared_answers += model.undeclared_answers


class DataPlane:
    """All versions of one model that keep one contract.

    Args:
        contract: what the endpoint promises.
        resolver: finds the version that a reference means.
        load: fetches and loads a version; blocks.
        cache: how many versions stay loaded.
        batching: when requests are merged.
        limits: what one request may cost.
        environment: what is known of a version's requirements and where it runs, ready for JSON.
        on_change: called with its key each time a version has come into another state.
    """

    def __init__(
        self,
        contract: Contract,
        resolver: Resolver,
        load: Callable[[ModelVersion], LoadedModel],
        *,
        cache: CachePolicy,
        batching: BatchPolicy,
        limits: Limits,
        environment: Callable[[VersionKey], Mapping[str, Any] | None] = lambda key: None,
        on_change: Callable[[VersionKey, VersionState], None] = lambda key, state: None,
    ) -> None:
        self.contract = contract
        self.resolver = resolver
        self.batching = batching
        self.limits = limits
        self.counts = Counts()
        self._load_model = load
        self._environment = environment
        self._known: OrderedDict[VersionKey, _Known] = OrderedDict()
        self._loading_since: dict[VersionKey, float] = {}
        self._preloaded: ServedModel | None = None
        self._pending = 0
        self._ready = False
        self._draining = False
        self.cache: VersionCache[VersionKey, ServedModel] = VersionCache(
            self._close, cache, size_of=lambda model: model.size_bytes, on_change=on_change
        )

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
        self._preloaded = dict(self.cache.models()).get(default.key)
        example = default.card.input_example
        body = example_body(example, schema)
        if body is not None:
            try:
                # The first call may compile, allocate and download: it has no limit of its own.
                await self._predict(default, schema.check(body), None)
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
            version = await self.resolver.resolve(reference)
            schema = self._schema(version)
            inline = len(content) <= _PARSE_INLINE_BYTES
            request = schema.parse(content) if inline else await asyncio.to_thread(schema.parse, content)
            return Answer(version.number, await self._predict(version, request, self.limits.request_timeout_s))

    async def call(self, reference: str | None, rows: Any, params: Mapping[str, Any] | None) -> bytes:
        """Answer a caller from Python, whose rows and params are plain values as JSON would give them."""
        with self._admitted():
            version = await self.resolver.resolve(reference)
            request = await asyncio.to_thread(self._schema(version).check_call, rows, params)
            return await self._predict(version, request, self.limits.request_timeout_s)

    def check_health(self) -> None:
        """Find a model that has not come back: nothing but a new process frees its thread.

        Raises:
            ReplicaStuck: a call or a load has lasted for too long.
        """
        limit = self.limits.stuck_after_s
        if limit is None:
            return
        call_limit = max(limit, self.limits.request_timeout_s)
        for key, model in self.cache.models():
            if model.busy_s > call_limit:
                raise ReplicaStuck(f"A call of version {key.number} of {key.model!r}", model.busy_s)
        for key, since in self._loading_since.items():
            if time.monotonic() - since > limit * _LOADS_TAKE_LONGER:
                raise ReplicaStuck(f"Loading version {key.number} of {key.model!r}", time.monotonic() - since)

    async def describe(self) -> dict[str, Any]:
        """Return what there is to know about the model, its versions and this replica, ready for JSON."""
        states = {key.number: state for key, state in self.cache.states().items()}
        loaded = {key.number: model.describe() for key, model in self.cache.models()}
        described = await describe(self.contract, self.resolver, states, loaded, self._environment)
        return described | {"replica": self.status()}

    def status(self) -> dict[str, Any]:
        """Return what this replica does and has done, ready for JSON."""
        counts = replace(self.counts)
        for _, model in self.cache.models():
            counts.add(model)
        return {
            "ready": self.ready,
            "max_models": self.cache.policy.max_models,
            "loads": self.cache.loads,
            "evictions": self.cache.evictions,
            "pending_requests": self._pending,
            "cache": asdict(self.cache.policy),
            "batching": asdict(self.batching),
            "limits": asdict(self.limits),
            **asdict(counts),
        }

    async def aclose(self) -> None:
        """Refuse new requests, let those under way finish, close all models."""
        self._draining = True
        await self.cache.aclose()
        await self.resolver.aclose()

    # --- before the cache --------------------------------------------------------------------------------------------

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Let a request in if there is room, and count how it ends."""
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
        except RegistryServeError as error:
            self.counts.errors[error.code] = self.counts.errors.get(error.code, 0) + 1
            raise
        self.counts.answered += 1

    def _schema(self, version: ModelVersion) -> RequestSchema:
        """Hold a version against the contract, once for each revision of it."""
        known = self._known.get(version.key)
        if known is None:
            differences = self.contract.differences(version)
            schema = None if differences else self.contract.schema_of(version)
            known = self._known[version.key] = _Known(schema, differences)
            if len(self._known) > _KNOWN_VERSIONS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(version.key)
        if known.schema is None:
            raise SignatureConflict(version.model, version.number, self.contract.default.number, known.differences)
        return known.schema

    # --- the model ---------------------------------------------------------------------------------------------------

    async def _predict(self, version: ModelVersion, request: Request, limit_s: float | None) -> bytes:
        started, loaded = time.monotonic(), False
        waits = [wait for wait in (limit_s, self.limits.cold_load_wait_s) if wait is not None]
        lease = self.cache.lease(version.key, partial(self._load, version), wait_s=min(waits, default=None))
        try:
            async with lease:
                loaded = True
                left_s = None if limit_s is None else limit_s - (time.monotonic() - started)
                return await lease.model.predict(request, lease.extend, left_s)
        except ModelLost as lost:
            self.cache.discard(version.key, lease.model)
            raise ModelProcessDied(version.model, version.number) from lost
        except TimeoutError:
            if loaded:
                raise PredictionTimeout(version.model, version.number, limit_s) from None
            raise VersionLoading(version.model, version.number, round(time.monotonic() - started, 1)) from None

    async def _load(self, version: ModelVersion) -> ServedModel:
        model = ServedModel(version, self._schema(version), self.batching)
        known = self._known[version.key]
        self._loading_since[version.key] = time.monotonic()
        try:
            await model.load(self._load_model, known.merging)
        finally:
            del self._loading_since[version.key]
        known.merging = model.merging
        return model

    async def _close(self, model: ServedModel) -> None:
        self.counts.add(model)
        known = self._known.get(model.version.key)
        if known is not None:
            known.merging = model.merging
        await model.close()
        if model is self._preloaded:
            # Serve freezes what it finds after start-up: frozen garbage would never be collected. Not frozen again, or
            # the models that are loaded now would stay when they are evicted.
            gc.unfreeze()
        # Models unpickled by value are full of reference cycles, and Python is in no hurry with large, old ones.
        await asyncio.to_thread(gc.collect)
