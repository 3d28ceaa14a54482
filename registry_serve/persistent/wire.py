"""The wire between client and deployment: gRPC with JSON for messages, so that nothing has to be generated.

    Generate   {"prompts": [...], "options": {...}}  ->  {"responses": [...], "replica": 0}
    Stream     the same with one prompt              ->  a response for each piece, then one with the reason of the end
    Status     {}                                    ->  what the replicas do
    End        {}                                    ->  {}; the deployment goes soon after

Every call brings the deployment's token. An error of ``registry_serve.errors`` goes into the trailing metadata by its
code and its arguments, and is raised again on the other side as what it was.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

import grpc
import grpc.aio
from pydantic_core import from_json, to_json

from registry_serve import errors
from registry_serve.errors import DeploymentUnavailable, InvalidRequest, RegistryServeError

logger = logging.getLogger(__name__)

_SERVICE = "registry_serve.PersistentDeployment"
_TOKEN = "token"  # noqa: S105 - the name of a header
_ERROR = "error-bin"
_LARGEST_MESSAGE = 64 * 2**20
#: For the errors in the trailing metadata.
_LARGEST_METADATA = 2**20
_STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OPTIONS = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.max_metadata_size", _LARGEST_METADATA),
    ("grpc.absolute_max_metadata_size", _LARGEST_METADATA),
]
#: Two servers must not share a port, and calls to this machine take no way around.
_OF_SERVERS = [*_OPTIONS, ("grpc.so_reuseport", 0)]
_OF_CLIENTS = [
    *_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    # A front that starts anew is found when it is there, and not up to two minutes later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

Message = dict[str, Any]


class Answers(Protocol):
    """What answers the calls."""

    async def generate(self, asked: Message) -> Message:
        """Answer the prompts of a request."""

    def stream(self, asked: Message) -> AsyncGenerator[Message, None]:
        """Answer one prompt piece by piece; closing the generator ends it."""

    async def status(self, asked: Message) -> Message:
        """Return what the replicas do."""

    async def end(self, asked: Message) -> Message:
        """Begin to end the deployment."""


async def listen(answers: Answers, token: str, port: int) -> grpc.aio.Server:
    """Answer calls on a port of this machine, from now on.

    Raises:
        RuntimeError: the port is taken.
    """
    server = grpc.aio.server(options=_OF_SERVERS)
    unary = {"Generate": answers.generate, "Status": answers.status, "End": answers.end}
    methods: dict[str, grpc.RpcMethodHandler] = {
        name: grpc.unary_unary_rpc_method_handler(_unary(call, token)) for name, call in unary.items()
    }
    methods["Stream"] = grpc.unary_stream_rpc_method_handler(_stream(answers.stream, token))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, methods)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


class Calls(NamedTuple):
    """The calls of a channel, synchronous or not."""

    generate: Any
    stream: Any
    status: Any
    end: Any


def target(host: str, port: int) -> str:
    """Return an address of gRPC; ``localhost`` is what the deployment listens on, and never another address."""
    return f"{'127.0.0.1' if host == 'localhost' else host}:{port}"


def connect(address: str) -> tuple[grpc.Channel, Calls]:
    """Return a channel that is opened with its first call, and its calls."""
    channel = grpc.insecure_channel(address, options=_OF_CLIENTS)
    return channel, _calls(channel)


def connect_async(address: str) -> tuple[grpc.aio.Channel, Calls]:
    """Return the same for the running event loop."""
    channel = grpc.aio.insecure_channel(address, options=_OF_CLIENTS)
    return channel, _calls(channel)


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Return what every call must bring."""
    return ((_TOKEN, token),)


def raised(error: grpc.RpcError, name: str) -> RegistryServeError:
    """Return the error that a failed call of a deployment means."""
    code, details = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == _ERROR:
            told = from_json(value)
            return _class_of(told["code"])(*told["args"])
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return DeploymentUnavailable(name, "is not what listens at its port: another one does, with another token")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return DeploymentUnavailable(name, "does not answer: its front starts anew, or it was ended")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:  # the caller's own; the deployment's comes with its error
        return DeploymentUnavailable(name, "has not answered in time")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        message = f"has more than the {_LARGEST_MESSAGE} bytes that one message may have"
        return InvalidRequest([{"location": [], "message": message}])
    return RegistryServeError(f"The deployment {name!r} failed: {code.name}, {details}")


# --- the server's side -----------------------------------------------------------------------------------------------


def _unary(call: Callable[[Message], Awaitable[Message]], token: str) -> Any:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await _admit(context, token)
        try:
            return to_json(await call(_message(request)))
        except Exception as error:
            await _abort(context, error)
            raise AssertionError("unreachable: abort raises") from error

    return answer


def _stream(call: Callable[[Message], AsyncGenerator[Message, None]], token: str) -> Any:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncGenerator[bytes, None]:
        await _admit(context, token)
        try:
            async with aclosing(call(_message(request))) as messages:
                async for message in messages:
                    yield to_json(message)
        except Exception as error:  # noqa: BLE001 - told to the client, and logged if it is none of ours
            await _abort(context, error)

    return answer


async def _admit(context: grpc.aio.ServicerContext[bytes, bytes], token: str) -> None:
    given = dict(context.invocation_metadata() or ()).get(_TOKEN, "")
    if not hmac.compare_digest(str(given).encode(), token.encode()):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token in the metadata is not this deployment's.")


def _message(request: bytes) -> Message:
    try:
        message = from_json(request or b"{}")
    except ValueError as error:
        raise InvalidRequest([{"location": [], "message": f"is not JSON: {error}"}]) from None
    if not isinstance(message, dict):
        raise InvalidRequest([{"location": [], "message": "should be an object"}])
    return message


async def _abort(context: grpc.aio.ServicerContext[bytes, bytes], error: Exception) -> None:
    if not isinstance(error, RegistryServeError):
        logger.exception("A call failed.", exc_info=error)
        error = RegistryServeError("An unexpected error; the server's log has the cause.")
    told = to_json({"code": error.code, "args": error.args})
    status = _STATUSES.get(error.status, grpc.StatusCode.INTERNAL)
    await context.abort(status, error.detail, ((_ERROR, told),))


# --- the client's side -----------------------------------------------------------------------------------------------


def _calls(channel: Any) -> Calls:
    return Calls(
        channel.unary_unary(f"/{_SERVICE}/Generate", to_json, from_json),
        channel.unary_stream(f"/{_SERVICE}/Stream", to_json, from_json),
        channel.unary_unary(f"/{_SERVICE}/Status", to_json, from_json),
        channel.unary_unary(f"/{_SERVICE}/End", to_json, from_json),
    )


def _class_of(code: str) -> type[RegistryServeError]:
    kinds: list[type[RegistryServeError]] = [getattr(errors, name) for name in errors.__all__]
    return next((kind for kind in kinds if kind.code == code), RegistryServeError)
