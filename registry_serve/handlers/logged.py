"""A handler as an MLflow model: the file that tells which one it is, and what MLflow loads and calls instead.

The file is JSON and no pickle: what a version runs can be read in the registry. MLflow puts the code that came along on
``sys.path``, and then calls :func:`_load_pyfunc` of this module, which is the model's ``loader_module``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException

from registry_serve.downloaders import Download
from registry_serve.errors import InvalidRequest
from registry_serve.handlers.calls import answer_batch, answer_piecewise, streams
from registry_serve.handlers.loading import build
from registry_serve.handlers.schema import HandlerSchema
from registry_serve.handlers.spec import HandlerSpec
from registry_serve.signature import Request, plain

#: The only column of a logged handler's signature.
INPUT = "input"


class LoggedHandler:
    """A built handler that is called as MLflow calls its models.

    It gets what it would get without MLflow in between: plain JSON values, and None for what is missing in a column.
    """

    def __init__(self, handler: Any, name: str) -> None:
        self._handler = handler
        self._schema = HandlerSchema(type(handler), name)

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Answer with one plain JSON value for each row.

        Raises:
            MlflowException: the rows or the params do not fit the handler's annotations.
            AnswerInvalid: the handler did not answer with one output for each input.
        """
        return self._answer(self._request(model_input, params))

    def answer(self, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> list[Any]:
        """Answer inputs that come in no frame.

        Raises:
            InvalidRequest: the inputs or the parameters do not fit the handler's annotations.
            AnswerInvalid: as ``predict``.
        """
        return self._answer(self._schema.check_inputs(inputs, parameters))

    def close(self) -> None:
        """Let the handler close what it has opened."""
        handler, self._handler = self._handler, None
        close = getattr(handler, "close", None)
        if callable(close):
            close()

    def __del__(self) -> None:
        # MLflow tells its models nothing when they are dropped.
        if getattr(self, "_handler", None) is not None:
            self.close()

    def _answer(self, request: Request) -> list[Any]:
        return self._schema.answer(answer_batch(self._handler, request.rows, request.params), request.count)

    def _request(self, frame: pd.DataFrame, params: Mapping[str, Any] | None) -> Request:
        inputs = plain(frame[INPUT]) if INPUT in frame else [None] * len(frame)
        try:
            return self._schema.check_inputs(inputs, plain(dict(params or {})))
        except InvalidRequest as error:
            raise MlflowException.invalid_parameter_value(error.detail) from error


class StreamingLoggedHandler(LoggedHandler):
    """A built handler that can also answer piece by piece."""

    def predict_stream(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Answer one row, or what MLflow makes of it: the only value of it."""
        row = model_input if isinstance(model_input, Mapping) else {INPUT: model_input}
        request = self._request(pd.DataFrame([row]), params)
        for piece in answer_piecewise(self._handler, request.rows[0], request.params, body=False):
            yield self._schema.answer([piece], 1)[0]


def written(spec: HandlerSpec) -> str:
    """Return the content of the file that tells a handler whose names are all dotted paths.

    Raises:
        TypeError: one of its parameters has no JSON form.
    """
    return json.dumps(
        {
            "handler": spec.handler,
            "model_parameters": dict(spec.parameters),
            "downloader": spec.download.downloader,
            "download_parameters": dict(spec.download.parameters),
        },
        indent=2,
        allow_nan=False,
    )


def logged(handler: Any, name: str) -> LoggedHandler:
    """Return what MLflow calls instead of a built handler, which is not of the older form."""
    kind = StreamingLoggedHandler if streams(type(handler)) else LoggedHandler
    return kind(handler, name)


def _load_pyfunc(path: str) -> LoggedHandler:
    """Download what the handler needs, once for each node, and build it."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    download = Download(told["downloader"], told["download_parameters"])
    spec = HandlerSpec(told["handler"], told["model_parameters"], download)
    return logged(build(spec), spec.name)
