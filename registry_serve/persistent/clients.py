"""PersistentClient: a callable that asks a persistent deployment, from any process of the machine that it is on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import grpc

from registry_serve.errors import DeploymentNotFound
from registry_serve.persistent import records, wire
from registry_serve.persistent.config import MIIConfig, configured
from registry_serve.persistent.ending import terminate
from registry_serve.persistent.options import GenerateParamsConfig, prompts_of
from registry_serve.persistent.response import Response

StreamingFn = Callable[[list[Response]], object]


class PersistentClient:
    """A client of a persistent deployment. ``serve`` and ``client`` make it; threads may share it.

        client(["DeepSpeed is", "Seattle is"], max_new_tokens=128)

    Args:
        mii_config: of the deployment.
        host: that it is on: a client needs what is written down of the deployment, so it is this machine.

    Raises:
        DeploymentNotFound: nothing is written down of it.
    """

    def __init__(self, mii_config: MIIConfig | Mapping[str, Any], host: str = "localhost") -> None:
        config = mii_config if isinstance(mii_config, MIIConfig) else configured("", None, mii_config, {})
        record = records.find(config.name)
        if record is None:
            raise DeploymentNotFound(config.name, [each.name for each in records.everything()])
        self._record = record
        self._address = wire.target(host, record.config.port_number)
        self._channel, self.stub = wire.connect(self._address)
        self._metadata = wire.metadata(record.token)
        self._in_loops: dict[asyncio.AbstractEventLoop, tuple[Any, wire.Calls]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def mii_config(self) -> MIIConfig:
        """How the deployment is configured."""
        return self._record.config

    @property
    def task(self) -> str:
        """What its model is for."""
        return self.mii_config.model_conf.task

    @property
    def port(self) -> int:
        """The port that its gRPC server listens on."""
        return self.mii_config.port_number

    @property
    def asyncio_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that runs in this thread, or else one to run coroutines of this client in."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            self._loop = self._loop or asyncio.new_event_loop()
            return self._loop

    def __call__(
        self, prompts: str | Sequence[str], streaming_fn: StreamingFn | None = None, **generate_kwargs: Any
    ) -> list[Response] | None:
        """Do as ``generate`` does."""
        return self.generate(prompts, streaming_fn, **generate_kwargs)

    def generate(
        self, prompts: str | Sequence[str], streaming_fn: StreamingFn | None = None, **generate_kwargs: Any
    ) -> list[Response] | None:
        """Answer prompts, in their order; also where an event loop runs, which then waits.

        Args:
            prompts: a text, or several: one request in any case, which one replica answers.
            streaming_fn: called with a list of one response for each piece of the answer, and then for its end; nothing
                is returned then.
            **generate_kwargs: options; see :class:`registry_serve.persistent.GenerateParamsConfig`.

        Raises:
            UnknownArgument: there is no such option.
            InvalidRequest: a prompt or an option has no meaning.
            DeploymentUnavailable: it does not answer now, or not any more.
            RuntimeError: there are several prompts, and a ``streaming_fn``.
            RegistryServeError: it failed.
        """
        asked = self._asked(prompts, generate_kwargs)
        try:
            if streaming_fn is None:
                return _responses(self.stub.generate(asked, metadata=self._metadata))
            _require_one(asked)
            call = self.stub.stream(asked, metadata=self._metadata)
            try:
                for piece in call:
                    streaming_fn([Response.from_msg_dict(piece)])
            finally:
                call.cancel()  # nothing happens to it where it is done
            return None
        except grpc.RpcError as error:
            raise self._raised(error) from None

    async def generate_async(
        self, prompts: str | Sequence[str], streaming_fn: StreamingFn | None = None, **generate_kwargs: Any
    ) -> list[Response] | None:
        """Do as ``generate`` does, without keeping the event loop; a caller that is cancelled frees its place."""
        if streaming_fn is None:
            return await self._request_async_response(prompts, **generate_kwargs)
        async for piece in self._request_async_response_stream(prompts, **generate_kwargs):
            streaming_fn(piece)
        return None

    async def _request_async_response(self, prompts: str | Sequence[str], **query_kwargs: Any) -> list[Response]:
        """Answer prompts: under the name that programs for DeepSpeed-MII know."""
        asked = self._asked(prompts, query_kwargs)
        try:
            return _responses(await self._calls().generate(asked, metadata=self._metadata))
        except grpc.RpcError as error:
            raise self._raised(error) from None

    async def _request_async_response_stream(
        self, prompts: str | Sequence[str], **query_kwargs: Any
    ) -> AsyncGenerator[list[Response], None]:
        """Answer a prompt piece by piece: under the name that programs for DeepSpeed-MII know."""
        asked = self._asked(prompts, query_kwargs)
        _require_one(asked)
        call = self._calls().stream(asked, metadata=self._metadata)
        try:
            async for piece in call:
                yield [Response.from_msg_dict(piece)]
        except grpc.RpcError as error:
            raise self._raised(error) from None
        finally:
            call.cancel()  # nothing happens to it where it is done

    def status(self, timeout_s: float | None = 30.0) -> dict[str, Any]:
        """Return what the replicas do: which are up, in which process, and how many requests each was given.

        Raises:
            DeploymentUnavailable: the deployment does not answer.
        """
        try:
            told: dict[str, Any] = self.stub.status({}, metadata=self._metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._raised(error) from None
        return told

    def terminate_server(self) -> None:
        """End the deployment, and forget it.

        A cluster in the background on which nothing else is deployed ends with it.

        Raises:
            ConfigurationError: this process is connected to another cluster.
        """
        terminate(self._record)

    async def terminate_async(self) -> None:
        """Do as ``terminate_server`` does, without keeping the event loop."""
        await asyncio.to_thread(self.terminate_server)

    def _calls(self) -> wire.Calls:
        """Return the calls for the running event loop: a channel belongs to one."""
        loop = asyncio.get_running_loop()
        if loop not in self._in_loops:
            for each in list(self._in_loops):
                if each.is_closed():
                    self._in_loops.pop(each, None)
            self._in_loops[loop] = wire.connect_async(self._address)
        return self._in_loops[loop][1]

    def _raised(self, error: grpc.RpcError) -> Exception:
        return wire.raised(error, self._record.name)

    @staticmethod
    def _asked(prompts: str | Sequence[str], options: Mapping[str, Any]) -> wire.Message:
        GenerateParamsConfig.of(options)
        return {"prompts": prompts_of(prompts), "options": dict(options)}


def _responses(answered: wire.Message) -> list[Response]:
    return [Response.from_msg_dict(each) for each in answered["responses"]]


def _require_one(asked: wire.Message) -> None:
    if len(asked["prompts"]) != 1:
        raise RuntimeError("Only one prompt can be streamed at a time: call once for each.")
