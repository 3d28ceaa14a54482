"""DataPlane: the way of every request, whatever protocol it comes by. No web, no Serve.

    reference ──► resolve ──► policy ──► contract ──► parse ──► lease ──► queue ──► predict ──► encode
                   404          403         409      400, 422   500, 503   429     500, 504

Everything before the lease is metadata: a request that is refused there has loaded nothing and evicted nothing. From
the lease on the way is that of :mod:`registry_serve.loaded`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from registry_serve.admission import Admission
from registry_serve.contract import Contract
from registry_serve.description import describe
from registry_serve.errors import (
    GenerationUnsupported,
    InvalidRequest,
    RegistryServeError,
    WarmUpFailed,
)
from registry_serve.generation import Chunk
from registry_serve.handlers import HandlerContract, OnlyVersion
from registry_serve.known import KnownVersions
from registry_serve.leases import VersionState
from registry_serve.loaded import LoadedVersions
from registry_serve.models import LoadedModel
from registry_serve.models.streams import gathered, side_by_side
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.rates import RateLimit
from registry_serve.registry import ModelVersion, Resolver, VersionKey
from registry_serve.signature import Request, Schema, example_body

logger = logging.getLogger(__name__)

#: Larger bodies are parsed in a thread, so that the event loop goes on answering others meanwhile.
PARSE_INLINE_BYTES = 128 * 1024

Body = bytes | Callable[[], Awaitable[bytes]]
Parse = Callable[[Schema, bytes], Request]


@dataclass(frozen=True)
class Answer:
    """A version's answer.

    Attributes:
        version: the version that answered.
        body: JSON, encoded.
        chunk: what is known of a piece of generated text.
    """

    version: str
    body: bytes
    chunk: Chunk | None = None


class DataPlane:
    """All versions of one model that keep one contract.

    Attributes:
        place: where it runs, ready for JSON; whoever put it there says it.
        cache: the versions that are loaded.

    Args:
        contract: what the endpoint promises.
        resolver: finds the version that a reference means.
        load: fetches and loads a version; blocks.
        cache: how many versions stay loaded.
        batching: when requests are merged.
        limits: what one request may cost.
        rate_limit: requests that are let in per second; None for any number.
        environment: what is known of a version's requirements and where it runs, ready for JSON.
        on_change: called with its key each time a version has come into another state.
        generates: says of a version that is not loaded yet whether it may be one that generates text.
    """

    def __init__(
        self,
        contract: Contract | HandlerContract,
        resolver: Resolver | OnlyVersion,
        load: Callable[[ModelVersion], LoadedModel],
        *,
        cache: CachePolicy,
        batching: BatchPolicy,
        limits: Limits,
        rate_limit: float | None = None,
        environment: Callable[[VersionKey], Mapping[str, Any] | None] = lambda key: None,
        on_change: Callable[[VersionKey, VersionState], None] = lambda key, state: None,
        generates: Callable[[ModelVersion], bool] = lambda version: True,
    ) -> None:
        self.contract = contract
        self.resolver = resolver
        self.batching = batching
        self.limits = limits
        self.place: Mapping[str, str] = {}
        self._environment = environment
        self._may_generate = generates
        rate = None if rate_limit is None else RateLimit(rate_limit)
        self._admission = Admission(limits.max_pending_requests, rate)
        self._known = KnownVersions(contract)
        self._loaded = LoadedVersions(
            load,
            self._known,
            cache=cache,
            batching=batching,
            limits=limits,
            on_change=on_change,
            on_close=self._admission.counts.add,
        )
        self.cache = self._loaded.cache
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether the default version is loaded and has answered its own input example."""
        return self._ready and not self._admission.draining

    @property
    def generates(self) -> bool:
        """Whether a loaded version generates text by an engine of its own."""
        return any(model.generates for _, model in self.cache.models())

    async def start(self) -> None:
        """Load the default version, keep it loaded, and let it answer its own input example.

        Raises:
            LoadFailed: it cannot be loaded.
            WarmUpFailed: it cannot answer.
        """
        default = self.contract.default
        schema = self._known.schema(default)
        await self._loaded.preload(default)
        example = default.card.input_example
        body = example_body(example, schema)
        if body is not None:
            try:
                # The first call may compile, allocate and download: it has no limit of its own.
                await self._loaded.predict(default, schema.check(body), None)
            except RegistryServeError as error:
                raise WarmUpFailed(f"The default version cannot answer its own input example: {error}") from error
        elif example is not None:
            logger.warning("The input example of version %s fits no request; it is not used.", default.number)
        self._ready = True

    async def predict(self, reference: str | None, body: Body, parse: Parse | None = None) -> Answer:
        """Answer the body of a request.

        Args:
            reference: the version asked for: a number, ``latest`` or an alias; None or blank for the default.
            body: JSON, or what reads it: nothing is read of a request that finds no room.
            parse: reads the body, where it is not in the form of the version's own schema.

        Raises:
            RegistryServeError: one of the errors above.
        """
        with self._admission.admitted():
            version, request = await self._read(reference, body, parse)
            return Answer(version.number, await self._loaded.predict(version, request, self.limits.request_timeout_s))

    async def generate(
        self, reference: str | None, body: Body, parse: Parse | None = None
    ) -> AsyncGenerator[Answer, None]:
        """Answer the body of a request piece by piece; closing the generator stops the model.

        Args:
            reference: as for ``predict``.
            body: as for ``predict``; one row.
            parse: as for ``predict``.

        Raises:
            StreamingUnsupported: the version answers in one piece only.
            RegistryServeError: one of the errors above, before the first piece or after any.
        """
        with self._admission.admitted():
            version, request = await self._read(reference, body, parse)
            if request.count != 1:
                raise InvalidRequest([{"location": ["inputs"], "message": "must be one input, to be streamed"}])
            async with aclosing(self._loaded.generate(version, request)) as pieces:
                async for piece, chunk in pieces:
                    yield Answer(version.number, piece, chunk)

    async def generate_each(
        self, read: Callable[[], Awaitable[tuple[str | None, Sequence[Request]]]]
    ) -> AsyncGenerator[tuple[int, Answer], None]:
        """Answer several requests that came in one, side by side: each piece, and the place of its request.

        Args:
            read: reads the body, which there is room for, and returns the version that it asks for and its requests,
                each of one row.

        Raises:
            Exception: as ``generate``.
        """
        with self._admission.admitted():
            reference, requests = await read()
            version = await self.resolver.resolve(reference)
            self._known.schema(version)
            if not self._may_generate(version):
                raise GenerationUnsupported(version.model, version.number)
            answers = [partial(self._loaded.generate, version, each) for each in requests]
            async with aclosing(side_by_side(answers)) as pieces:
                async for place, (piece, chunk) in pieces:
                    yield place, Answer(version.number, piece, chunk)

    async def call(self, reference: str | None, rows: Any, params: Mapping[str, Any] | None) -> bytes:
        """Answer a caller from Python, whose rows and params are plain values as JSON would give them."""
        with self._admission.admitted():
            version = await self.resolver.resolve(reference)
            request = await asyncio.to_thread(self._known.schema(version).check_call, rows, params)
            return await self._loaded.predict(version, request, self.limits.request_timeout_s)

    async def call_generate(
        self, reference: str | None, rows: Any, params: Mapping[str, Any] | None
    ) -> AsyncGenerator[list[Chunk], None]:
        """Answer a caller from Python piece by piece; what comes while it is busy is given together."""
        with self._admission.admitted():
            version = await self.resolver.resolve(reference)
            request = await asyncio.to_thread(self._known.schema(version).check_call, rows, params)
            if request.count != 1:
                raise InvalidRequest([{"location": ["inputs"], "message": "must be one input, to be streamed"}])
            pieces = self._loaded.generate(version, request)
            async with aclosing(pieces), aclosing(gathered(pieces)) as together:
                async for several in together:
                    yield [chunk for _, chunk in several if chunk is not None]

    def check_health(self) -> None:
        """Find a model that has not come back, or will not.

        Raises:
            ReplicaStuck: a call or a load has lasted for too long, or an engine is lost.
        """
        self._loaded.check_health()

    async def describe(self) -> dict[str, Any]:
        """Return what there is to know about the model, its versions and this replica, ready for JSON."""
        states = {key.number: state for key, state in self.cache.states().items()}
        loaded = {key.number: model.describe() for key, model in self.cache.models()}
        described = await describe(self.contract, self.resolver, states, loaded, self._environment)
        return described | {"replica": self.status()}

    def status(self) -> dict[str, Any]:
        """Return what this replica does and has done, ready for JSON."""
        counts = replace(self._admission.counts)
        for _, model in self.cache.models():
            counts.add(model)
        return {
            **self.place,
            "ready": self.ready,
            "max_models": self.cache.policy.max_models,
            "loads": self.cache.loads,
            "evictions": self.cache.evictions,
            "pending_requests": self._admission.pending,
            "cache": asdict(self.cache.policy),
            "batching": asdict(self.batching),
            "limits": asdict(self.limits),
            **asdict(counts),
        }

    async def aclose(self) -> None:
        """Refuse new requests, let those under way finish, close all models."""
        self._admission.draining = True
        await self.cache.aclose()
        await self.resolver.aclose()

    # --- before the cache --------------------------------------------------------------------------------------------

    async def _read(self, reference: str | None, body: Body, parse: Parse | None) -> tuple[ModelVersion, Request]:
        content = body if isinstance(body, bytes) else await body()
        version = await self.resolver.resolve(reference)
        schema = self._known.schema(version)
        read = schema.parse if parse is None else partial(parse, schema)
        inline = len(content) <= PARSE_INLINE_BYTES
        request = read(content) if inline else await asyncio.to_thread(read, content)
        if self.batching.max_batch_bytes is not None:
            request = replace(request, size_bytes=len(content))
        return version, request
