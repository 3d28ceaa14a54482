"""The API of a model handler as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from registry_serve import errors
from registry_serve.handlers import HandlerContract, HandlerSchema
from registry_serve.handlers.annotations import Annotations
from registry_serve.protocols.openai import description
from registry_serve.protocols.openapi import PROBLEM, pages, problems, ref, with_security
from registry_serve.version import __version__

#: Where the classes of a handler are described: beside ours, under names of their own.
_SCHEMAS = "#/components/schemas/"


def document(contract: HandlerContract, title: str, *, with_keys: bool) -> dict[str, Any]:
    """Describe the endpoint of a handler, with what its annotations say.

    Args:
        contract: of the handler.
        title: shown at the top of the page.
        with_keys: whether requests need an API key.
    """
    handler = contract.default
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": handler.number,
            "description": f"The model handler `{handler.source}`. Served by registry_serve {__version__}.",
        },
        "paths": {**predictions(), **description.paths(), **pages()},
        "components": {"schemas": {**schemas(contract.schema), **description.schemas(), "Problem": PROBLEM}},
    }
    return with_security(described) if with_keys else described


def predictions() -> dict[str, Any]:
    """Return the paths of the predictions; they refer to the schemas ``Inputs`` and ``Outputs``."""
    outputs = {"application/json": {"schema": ref("Outputs")}}
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    return {
        "/predict": {"post": _post("predict", "Predict", "One output for each input", outputs)},
        "/predict_stream": {
            "post": _post(
                "predict_stream",
                "Predict one input, piece by piece",
                "One JSON value per line; a last line with `error` and `code` if the model failed on the way",
                lines,
                errors.StreamingUnsupported,
            )
        },
    }


def _post(
    operation: str, summary: str, answered: str, content: dict[str, Any], *more: type[errors.RegistryServeError]
) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["Predictions"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref("Inputs")}}},
        "responses": {"200": {"description": answered, "content": content}, **problems(*more)},
    }


def schemas(schema: HandlerSchema | None = None) -> dict[str, Any]:
    """Return the schemas of inputs and outputs, with what a handler's annotations say."""
    if schema is not None and schema.takes_body:
        return {"Inputs": {"type": "object"}, "Outputs": _outputs({})}
    annotations = Annotations() if schema is None else schema.annotations
    definitions: dict[str, Any] = {}
    one = _json("Input", annotations.input, definitions)
    inputs = {
        "type": "object",
        "properties": {
            "inputs": {"anyOf": [{"type": "array", "items": one, "minItems": 1}, one]},
            "parameters": _json("Parameters", annotations.parameters, definitions) or {"type": "object"},
        },
        "required": ["inputs"],
    }
    return {"Inputs": inputs, "Outputs": _outputs(_json("Output", annotations.output, definitions)), **definitions}


def _outputs(one: dict[str, Any]) -> dict[str, Any]:
    outputs = {"outputs": {"type": "array", "items": one}}
    return {"type": "object", "properties": outputs, "required": ["outputs"]}


def _json(what: str, adapter: TypeAdapter[Any] | None, definitions: dict[str, Any]) -> dict[str, Any]:
    if adapter is None:
        return {}
    found = adapter.json_schema(ref_template=f"{_SCHEMAS}{what}.{{model}}")
    definitions.update({f"{what}.{name}": each for name, each in found.pop("$defs", {}).items()})
    return found
