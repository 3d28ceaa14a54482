"""The models that clients of OpenAI's format may choose from: the versions of the deployment's one model."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from registry_serve.dataplane import DataPlane
from registry_serve.errors import ModelNotServed
from registry_serve.handlers import HandlerContract
from registry_serve.protocols.front import Endpoint, json_answer

#: Errors repeat what was asked for, but not a name of any length.
_MOST_SHOWN = 100


def reference_of(model: str, served: str) -> str | None:
    """Return the reference that the ``model`` of a request holds; None for the default version.

    Args:
        model: ``NAME`` or ``NAME:REFERENCE``.
        served: the name of the model that the deployment serves.

    Raises:
        ModelNotServed: it is another name.
    """
    if model == served:
        return None
    reference = model.removeprefix(f"{served}:")
    if reference == model or not reference.strip():
        raise ModelNotServed(served, model[:_MOST_SHOWN])
    return reference


def model_pages(plane: DataPlane) -> dict[str, Endpoint]:
    """Return the pages ``/v1/models`` and ``/v1/models/{model}``."""
    served = plane.contract.default.model

    async def models(request: Request) -> Response:
        return json_answer({"object": "list", "data": await _listed(plane)})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        version = await plane.resolver.resolve(reference_of(name, served))
        return json_answer(_model(name, version.created))

    return {"/v1/models": models, "/v1/models/{model}": model}


async def _listed(plane: DataPlane) -> list[dict[str, Any]]:
    """List the default version under the model's name, then what else answers like it: aliases, then numbers."""
    default = plane.contract.default
    listed = [_model(default.model, default.created)]
    if isinstance(plane.contract, HandlerContract):
        return listed
    described = await plane.describe()
    for version in described["versions"]:
        if not version["compatible"]:
            continue
        others = [version["version"]] if version["version"] != default.number else []
        for reference in (*version["aliases"], *others):
            listed.append(_model(f"{default.model}:{reference}", datetime.fromisoformat(version["created"])))
    return listed


def _model(name: str, created: datetime) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created.timestamp()), "owned_by": "registry_serve"}
