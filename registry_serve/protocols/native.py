"""The native front: the model's own signature over HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp

from registry_serve.contract import Contract
from registry_serve.dataplane import DataPlane
from registry_serve.protocols import mosaicml, openai
from registry_serve.protocols.front import Front
from registry_serve.protocols.gate import ApiKeys
from registry_serve.protocols.handler_openapi import predictions, schemas
from registry_serve.protocols.openai import description
from registry_serve.protocols.openapi import document
from registry_serve.protocols.prediction import Prediction
from registry_serve.protocols.streaming import EVENTS, Pieces

_PREDICTION_PATH = re.compile(r"(?:/versions/(?P<version>[^/]+))?/serve(?P<streams>/stream)?/?")


def native_app(
    plane: DataPlane,
    title: str,
    keys: ApiKeys | None = None,
    *,
    behind_serve: bool = False,
) -> Front:
    """Build the web application of a registered model.

    | path                                            | what                                          |
    |-------------------------------------------------|-----------------------------------------------|
    | ``POST /serve``                                 | predict; the version comes in a header        |
    | ``POST /versions/{version}/serve``              | predict with that version                     |
    | ``POST /serve/stream``, ``/versions/{version}/serve/stream`` | one row, answered by server-sent events |
    | ``POST /predict``, ``/predict_stream``          | the same in the form of MosaicML's clients    |
    | ``POST /v1/completions``, ``/v1/chat/completions``, ``GET /v1/models`` | in OpenAI's form, for language models |
    | ``GET /model``                                  | name, versions, compatibility, what is loaded |
    | ``GET /health/live``, ``/health/ready``, ``/ping`` | for load balancers; need no key            |
    | ``GET /docs``, ``/redoc``, ``/openapi.json``    | the API, without internet access              |

    Args:
        plane: answers the requests.
        title: shown in the documentation.
        keys: keys that clients must send one of, if any.
        behind_serve: Ray Serve puts the request id on every answer itself.
    """
    assert isinstance(plane.contract, Contract)
    predict: ASGIApp = Prediction(plane)
    stream: ASGIApp = Pieces(plane, EVENTS)
    native = {
        "/serve": predict,
        "/versions/{version}/serve": predict,
        "/serve/stream": stream,
        "/versions/{version}/serve/stream": stream,
    }
    paths = {**native, **mosaicml.endpoints(plane), **openai.endpoints(plane)}

    def find(path: str) -> tuple[ASGIApp, Mapping[str, Any]] | None:
        found = _PREDICTION_PATH.fullmatch(path)
        if found is None:
            return mosaicml.find(paths, path)
        return stream if found["streams"] else predict, {"version": found["version"]}

    described = document(plane.contract, title, with_keys=keys is not None)
    described["paths"] |= predictions() | description.paths()
    described["components"]["schemas"] |= schemas() | description.schemas()
    return Front(plane, find, paths, described, pages=openai.pages(plane), keys=keys, behind_serve=behind_serve)
