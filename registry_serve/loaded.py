"""Loaded versions: the way of a request from its lease on. What came before it was metadata; here models are loaded."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from registry_serve.cache import VersionCache
from registry_serve.errors import ModelProcessDied, PredictionTimeout, RegistryServeError, ReplicaStuck, VersionLoading
from registry_serve.generation import Chunk
from registry_serve.known import KnownVersions
from registry_serve.leases import Lease, VersionState
from registry_serve.models import LoadedModel, ModelLost
from registry_serve.models.served import ServedModel
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.registry import ModelVersion, VersionKey
from registry_serve.signature import Request

#: A load downloads gigabytes and compiles: it may take so many times as long as a call before it counts as stuck.
_LOADS_TAKE_LONGER = 10


class LoadedVersions:
    """The versions of one model that are loaded, or are being loaded.

    Attributes:
        cache: where they are.

    Args:
        load: fetches and loads a version; blocks.
        known: what is known of versions.
        cache: how many stay loaded.
        batching: when requests are merged.
        limits: what one request may cost.
        on_change: called with its key each time a version has come into another state.
        on_close: called with a model that answers no more.
    """

    def __init__(
        self,
        load: Callable[[ModelVersion], LoadedModel],
        known: KnownVersions,
        *,
        cache: CachePolicy,
        batching: BatchPolicy,
        limits: Limits,
        on_change: Callable[[VersionKey, VersionState], None],
        on_close: Callable[[ServedModel], None],
    ) -> None:
        self._load_model = load
        self._known = known
        self._batching = batching
        self._limits = limits
        self._on_close = on_close
        self._loading_since: dict[VersionKey, float] = {}
        self._preloaded: ServedModel | None = None
        self.cache: VersionCache[VersionKey, ServedModel] = VersionCache(
            self._close, cache, size_of=lambda model: model.size_bytes, on_change=on_change
        )

    async def preload(self, version: ModelVersion) -> None:
        """Load a version, and keep it.

        Raises:
            LoadFailed: it cannot be loaded.
        """
        await self.cache.pin(version.key, partial(self._load, version))
        self._preloaded = dict(self.cache.models()).get(version.key)

    async def predict(self, version: ModelVersion, request: Request, limit_s: float | None) -> bytes:
        """Answer a request, in JSON; the version is loaded first where necessary.

        Args:
            version: keeps the contract.
            request: of its schema.
            limit_s: how long it may take, loading included; None for any time.

        Raises:
            RegistryServeError: the version cannot be loaded, or does not answer.
        """
        started, lease = time.monotonic(), self._lease(version, limit_s)
        try:
            async with lease:
                left_s = None if limit_s is None else limit_s - (time.monotonic() - started)
                return await lease.model.predict(request, lease.extend, left_s)
        except (ModelLost, TimeoutError) as error:
            raise self._failure(error, version, lease, started) from error

    async def generate(
        self, version: ModelVersion, request: Request
    ) -> AsyncGenerator[tuple[bytes, Chunk | None], None]:
        """Answer a request of one row piece by piece, each in JSON and with what is known of it.

        Raises:
            RegistryServeError: as ``predict``, before the first piece or after any.
        """
        limit_s = self._limits.request_timeout_s
        started, lease = time.monotonic(), self._lease(version, limit_s)
        try:
            async with lease, aclosing(lease.model.generate(request, lease.extend, limit_s)) as pieces:
                async for piece in pieces:
                    yield piece
        except (ModelLost, TimeoutError) as error:
            raise self._failure(error, version, lease, started) from error

    def check_health(self) -> None:
        """Find a model that has not come back: nothing but a new process frees its thread.

        Raises:
            ReplicaStuck: a call or a load has lasted for too long, or an engine is lost.
        """
        for key, model in self.cache.models():
            if model.lost:
                raise ReplicaStuck(f"The engine of version {key.number} of {key.model!r}", model.busy_s)
        limit = self._limits.stuck_after_s
        if limit is None:
            return
        call_limit = max(limit, self._limits.request_timeout_s)
        for key, model in self.cache.models():
            if model.busy_s > call_limit:
                raise ReplicaStuck(f"A call of version {key.number} of {key.model!r}", model.busy_s)
        for key, since in self._loading_since.items():
            if time.monotonic() - since > limit * _LOADS_TAKE_LONGER:
                raise ReplicaStuck(f"Loading version {key.number} of {key.model!r}", time.monotonic() - since)

    def _lease(self, version: ModelVersion, limit_s: float | None) -> Lease[ServedModel]:
        waits = [wait for wait in (limit_s, self._limits.cold_load_wait_s) if wait is not None]
        return self.cache.lease(version.key, partial(self._load, version), wait_s=min(waits, default=None))

    def _failure(
        self, error: Exception, version: ModelVersion, lease: Lease[ServedModel], started: float
    ) -> RegistryServeError:
        if isinstance(error, ModelLost):
            if not lease.model.lost:  # what nothing but another replica helps is not loaded again here
                self.cache.discard(version.key, lease.model)
            return ModelProcessDied(version.model, version.number)
        if lease.held:
            return PredictionTimeout(version.model, version.number, self._limits.request_timeout_s)
        return VersionLoading(version.model, version.number, round(time.monotonic() - started, 1))

    async def _load(self, version: ModelVersion) -> ServedModel:
        model = ServedModel(version, self._known.schema(version), self._batching)
        self._loading_since[version.key] = time.monotonic()
        try:
            await model.load(self._load_model, self._known.merging(version.key))
        finally:
            del self._loading_since[version.key]
        self._known.found_out(version.key, model.merging)
        return model

    async def _close(self, model: ServedModel) -> None:
        self._on_close(model)
        self._known.found_out(model.version.key, model.merging)
        await model.close()
        if model is self._preloaded:
            # Serve freezes what it finds after start-up: frozen garbage would never be collected. Not frozen again, or
            # the models that are loaded now would stay when they are evicted.
            gc.unfreeze()
        # Models unpickled by value are full of reference cycles, and Python is in no hurry with large, old ones.
        await asyncio.to_thread(gc.collect)
