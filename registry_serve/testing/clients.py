"""Clients without a server: the real front over the real data plane, in an event loop in a thread of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import ASGIApp

from registry_serve.dataplane import DataPlane
from registry_serve.downloaders import Download
from registry_serve.handlers import HandlerSpec
from registry_serve.handlers.spec import DEFAULT_HANDLER
from registry_serve.planes import handler_plane
from registry_serve.policies import BatchPolicy, Limits
from registry_serve.protocols.mosaicml import handler_app
from registry_serve.protocols.native import native_app
from registry_serve.protocols.prediction import VERSION_HEADERS

try:
    import httpx
except ImportError as error:
    raise ImportError("The test clients need httpx: pip install 'registry-serve[testing]'.") from error

if TYPE_CHECKING:
    from typing_extensions import Self


class RequestFailed(Exception):
    """The endpoint answered with an error. What the model itself raised is in the log.

    Attributes:
        response: the answer.
    """

    def __init__(self, response: httpx.Response) -> None:
        told = response.json()
        super().__init__(f"{response.status_code} {told.get('code')}: {told.get('detail')}")
        self.response = response


class Client:
    """Sends requests to a front in this process. Use it in a ``with`` block: that starts and closes the models.

    Args:
        plane: makes what answers the requests.
        front: makes the web application for it.
    """

    def __init__(self, plane: Callable[[], DataPlane], front: Callable[[DataPlane], ASGIApp]) -> None:
        self._make_plane = plane
        self._make_front = front
        self._running = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        """Load the model.

        Raises:
            RegistryServeError: it cannot be loaded, or cannot answer its own input example.
        """
        with ExitStack() as starting:
            portal = starting.enter_context(start_blocking_portal())
            plane = portal.call(_called, self._make_plane)
            starting.callback(portal.call, plane.aclose)
            portal.call(plane.start)
            transport = httpx.ASGITransport(self._make_front(plane), raise_app_exceptions=False)
            self._http = httpx.AsyncClient(transport=transport, base_url="http://testing")
            starting.callback(portal.call, self._http.aclose)
            self._portal = portal
            self._running = starting.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        """Close all models."""
        self._portal = None
        self._running.close()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Send a ``GET``."""
        return self._send("GET", path, headers=headers)

    def post(
        self,
        path: str,
        *,
        json: Any = None,
        content: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a ``POST``, whatever comes back.

        Args:
            path: such as ``/predict``.
            json: a body to encode.
            content: a body as it is.
            headers: of the request.
        """
        return self._send("POST", path, json=json, content=content, headers=headers)

    def predict(
        self, inputs: Any, parameters: Mapping[str, Any] | None = None, *, version: str | int | None = None
    ) -> list[Any]:
        """Ask ``/predict``.

        Args:
            inputs: a list of inputs, or one.
            parameters: for all of them.
            version: which one, where there are several.

        Returns:
            The outputs.

        Raises:
            RequestFailed: the answer is an error.
        """
        body = {"inputs": inputs} if parameters is None else {"inputs": inputs, "parameters": dict(parameters)}
        outputs: list[Any] = _answer(self.post("/predict", json=body, headers=_naming(version))).json()["outputs"]
        return outputs

    def stream(self, input: Any, parameters: Mapping[str, Any] | None = None) -> list[Any]:  # noqa: A002
        """Ask ``/predict_stream``, and gather the pieces.

        Args:
            input: one input.
            parameters: for it.

        Raises:
            RequestFailed: the answer is an error, or ends in one.
        """
        body = {"inputs": [input]} if parameters is None else {"inputs": [input], "parameters": dict(parameters)}
        response = _answer(self.post("/predict_stream", json=body))
        pieces = [json.loads(line) for line in response.text.splitlines()]
        if pieces and isinstance(pieces[-1], dict) and pieces[-1].keys() == {"error", "code"}:
            told = {"code": pieces[-1]["code"], "detail": pieces[-1]["error"]}
            raise RequestFailed(httpx.Response(response.status_code, json=told, headers=response.headers))
        return pieces

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        if self._portal is None:
            raise RuntimeError("The client is not running: use it inside 'with', or take it from its fixture.")
        return self._portal.call(lambda: self._http.request(method, path, **options))


class HandlerClient(Client):
    """A client for a model handler, which is built in this process.

    Args:
        handler: a class with ``predict(self, model_requests)``, its dotted path, or the name of an entry point.
        model_parameters: keywords that it is built with.
        downloader: a function that fetches the model, its dotted path, or the name of an entry point.
        download_parameters: keywords that the downloader is called with.
        code_paths: folders to import the handler from.
        batching: ``"on"`` or ``"off"``, or a policy.
        limits: what one request may cost.

    Raises:
        HandlerInvalid: there is no such handler.
    """

    def __init__(
        self,
        handler: str | type | None = None,
        *,
        model_parameters: Mapping[str, Any] | None = None,
        downloader: str | Callable[..., Any] | None = None,
        download_parameters: Mapping[str, Any] | None = None,
        code_paths: Sequence[str | Path] = (),
        batching: str | BatchPolicy = "on",
        limits: Limits | None = None,
    ) -> None:
        download = Download(downloader, dict(download_parameters or {}))
        paths = tuple(map(str, code_paths))
        spec = HandlerSpec(handler or DEFAULT_HANDLER, dict(model_parameters or {}), download, paths)
        policy = batching if isinstance(batching, BatchPolicy) else BatchPolicy(batching)  # type: ignore[arg-type]
        super().__init__(
            lambda: handler_plane(spec, spec.name, batching=policy, limits=limits or Limits()),
            lambda plane: handler_app(plane, spec.name),
        )


class ModelClient(Client):
    """A client for a registered model: all its versions, as ``deployment_from_model_name`` serves them.

    Made by :meth:`registry_serve.testing.MemoryRegistry.client`.
    """

    def __init__(self, plane: Callable[[], DataPlane], title: str) -> None:
        super().__init__(plane, lambda made: native_app(made, title))

    def serve(self, rows: Any, params: Mapping[str, Any] | None = None, *, version: str | int | None = None) -> Any:
        """Ask ``/serve``.

        Args:
            rows: one row, or a list of them.
            params: for all of them.
            version: a number, ``latest`` or an alias; the default version if not given.

        Returns:
            The predictions.

        Raises:
            RequestFailed: the answer is an error.
        """
        body = {"inputs": rows} if params is None else {"inputs": rows, "params": dict(params)}
        return _answer(self.post("/serve", json=body, headers=_naming(version))).json()

    def describe(self) -> dict[str, Any]:
        """Return what ``GET /model`` tells."""
        described: dict[str, Any] = _answer(self.get("/model")).json()
        return described


async def _called(make: Callable[[], DataPlane]) -> DataPlane:
    return make()


def _naming(version: str | int | None) -> dict[str, str]:
    return {} if version is None else {VERSION_HEADERS[0]: str(version)}


def _answer(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise RequestFailed(response)
    return response
