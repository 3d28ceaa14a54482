"""The front of a deployment, a process of its own: it listens, and gives requests to the replicas in turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from registry_serve.errors import ConfigurationError, InvalidRequest, RegistryServeError
from registry_serve.generation import Chunk
from registry_serve.logs import log_where_serve_does
from registry_serve.persistent import records, wire
from registry_serve.persistent.options import GenerateParamsConfig, prompts_of
from registry_serve.persistent.response import GOES_ON, Response
from registry_serve.persistent.rest import listen as listen_rest
from registry_serve.persistent.turns import ReplicaGone, Turns

logger = logging.getLogger(__name__)

_UNTIL_STOPPED_S = 1.0


class Front:
    """The deployment of Ray Serve that the others stand behind.

    Args:
        path: of the deployment's record; the token is read from it, since Ray shows arguments to whoever may look.
        replicas: the others.
    """

    async def __init__(self, path: str, *replicas: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        log_where_serve_does()
        record = records.read(Path(path))
        if record is None:
            raise ConfigurationError(f"The record of the deployment, {path}, is not there.")
        config = record.config
        self._turns = Turns(record.name, [_Reached(each) for each in replicas])
        answers = Answers(self._turns, config.model_conf.max_length, _end)
        self._server = await wire.listen(answers, record.token, config.port_number)
        self._rest = None
        if config.enable_restful_api:
            self._rest = listen_rest(answers, record.name, config.restful_api_host, config.restful_api_port)

    async def __del__(self) -> None:
        """Stop listening."""
        if hasattr(self, "_server"):
            self._turns.close()
            if self._rest is not None:
                await self._rest.close()
            await self._server.stop(_UNTIL_STOPPED_S)


class Answers:
    """Requests as clients send them, answered by the replicas.

    Args:
        turns: of the replicas.
        max_length: for requests that say none; None for the model's context.
        end: ends the deployment; blocks.
    """

    def __init__(self, turns: Turns, max_length: int | None, end: Callable[[], None]) -> None:
        self._turns = turns
        self._max_length = max_length
        self._end = end
        self._ending: asyncio.Future[None] | None = None

    async def generate(self, asked: wire.Message) -> wire.Message:
        """Answer ``prompts`` with ``options``."""
        prompts, parameters = self._read(asked)
        responses, replica = await self._turns.answer(prompts, parameters)
        return {"responses": [each.to_msg_dict() for each in responses], "replica": replica}

    async def stream(self, asked: wire.Message) -> AsyncGenerator[wire.Message, None]:
        """Answer one of ``prompts`` piece by piece."""
        prompts, parameters = self._read(asked)
        if len(prompts) != 1:
            raise InvalidRequest([{"location": ["prompts"], "message": "must be one prompt, to be streamed"}])
        async with aclosing(self._turns.stream(prompts[0], parameters)) as chunks:
            async for chunk, _ in chunks:
                for response in _pieces(chunk):
                    yield response.to_msg_dict()

    async def status(self, asked: wire.Message) -> wire.Message:
        """Return what the replicas do."""
        return self._turns.describe()

    async def end(self, asked: wire.Message) -> wire.Message:
        """End the deployment, soon after the answer."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._ended())
        return {}

    async def _ended(self) -> None:
        try:
            await asyncio.to_thread(self._end)
        except Exception:
            logger.exception("The deployment could not be taken off. Whoever asks again has it tried again.")
            self._ending = None

    def _read(self, asked: wire.Message) -> tuple[list[str], dict[str, Any]]:
        options = asked.get("options", {})
        if not isinstance(options, dict):
            raise InvalidRequest([{"location": ["options"], "message": "should be an object"}])
        return prompts_of(asked.get("prompts")), GenerateParamsConfig.of(options).parameters(self._max_length)


def _end() -> None:
    """Take off the application that this process belongs to."""
    serve.delete(serve.get_replica_context().app_name)


def _pieces(chunk: Chunk) -> list[Response]:
    """Return what a chunk is to a client: the text, and the end without any."""
    text = [Response(chunk.text, chunk.prompt_tokens, chunk.generated_tokens, GOES_ON)] if chunk.text else []
    if chunk.finish_reason is None:
        return text
    return [*text, Response("", chunk.prompt_tokens, chunk.generated_tokens, chunk.finish_reason)]


class _Reached:
    """A replica behind a handle of Ray Serve."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)

    async def generate(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[list[Chunk], None]:
        answering: Any = self._streams.generate.remote(prompt, parameters)
        try:
            async for several in answering:
                yield several
        except Exception as error:
            raise _told(error) from error
        finally:
            answering.cancel()  # nothing happens to it where it is done

    async def status(self) -> Mapping[str, Any]:
        try:
            told: Mapping[str, Any] = await self._handle.status.remote()
        except Exception as error:
            raise _told(error) from error
        return told


def _told(error: Exception) -> Exception:
    """Return what Ray's error means."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RegistryServeError):
        return cause
    of_ray = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    if of_ray or isinstance(cause, (RayActorError, RayServeException)):
        return ReplicaGone(" ".join(str(error).split())[:300])
    return error
