"""The contract as an OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from registry_serve import errors
from registry_serve.contract import Contract
from registry_serve.errors import RegistryServeError
from registry_serve.protocols.prediction import VERSION_HEADERS
from registry_serve.signature import RequestSchema, declared_answer_json, example_body
from registry_serve.version import __version__

#: The answers to a prediction that are errors, in the order in which they are checked.
PREDICTION_ERRORS: tuple[type[RegistryServeError], ...] = (
    errors.Unauthenticated,
    errors.ForeignOrigin,
    errors.VersionReferenceConflict,
    errors.RateLimited,
    errors.Draining,
    errors.TooManyRequests,
    errors.BodyTooLarge,
    errors.BodyTimeout,
    errors.ModelNotFound,
    errors.VersionNotFound,
    errors.VersionForbidden,
    errors.RegistryUnavailable,
    errors.SignatureConflict,
    errors.MalformedJSON,
    errors.InvalidRequest,
    errors.TooManyTokens,
    errors.LoadFailed,
    errors.CodeConflict,
    errors.EnvironmentConflict,
    errors.DiskFull,
    errors.VersionLoading,
    errors.VersionOverloaded,
    errors.PredictionFailed,
    errors.ModelProcessDied,
    errors.PredictionTimeout,
)

PROBLEM = {
    "type": "object",
    "description": "An error in the form of RFC 9457. Members beyond these depend on `code`.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened and what to do next."},
        "code": {"type": "string", "description": "A stable word for programs and alerts."},
        "error": {"type": "string", "description": "A copy of `detail`."},
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "code", "error", "request_id"],
}


def document(contract: Contract, title: str, *, with_keys: bool) -> dict[str, Any]:
    """Describe the endpoint of a contract.

    Args:
        contract: what the endpoint promises.
        title: shown at the top of the page.
        with_keys: whether requests need an API key.
    """
    default = contract.default
    schema = contract.schema_of(default)
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    version["description"] = "A version number, `latest`, or an alias."
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": default.number,
            "description": (
                f"Versions of the registered model `{default.model}` that keep the signature of version "
                f"{default.number} ({contract.compatibility.value}). Served by registry_serve {__version__}."
            ),
        },
        "paths": {
            "/serve": {"post": _predict(contract, schema, "predict", _header_parameters(default.number))},
            "/versions/{version}/serve": {"post": _predict(contract, schema, "predict_version", [version])},
            "/serve/stream": {"post": _stream(contract, schema, "stream", _header_parameters(default.number))},
            "/versions/{version}/serve/stream": {"post": _stream(contract, schema, "stream_version", [version])},
            **pages(),
        },
        "components": {"schemas": _schemas(contract, schema)},
    }
    return with_security(described) if with_keys else described


def pages() -> dict[str, Any]:
    """Return the paths that every deployment has besides those of its predictions."""
    return {
        "/model": {"get": get("describe", "The model, its versions, and what is loaded here")},
        "/health/live": {"get": get("live", "The process runs")},
        "/health/ready": {"get": get("ready", "The default version answers", unready=True)},
        "/ping": {"get": get("ping", "The same as /health/ready, for MosaicML's clients", unready=True)},
    }


def with_security(described: dict[str, Any]) -> dict[str, Any]:
    """Return a document whose requests need an API key."""
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return described | {"security": [{"key": []}]}


def _header_parameters(default: str) -> list[dict[str, Any]]:
    return [
        {
            "name": VERSION_HEADERS[1],
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": (
                f"A version number, `latest`, or an alias; version {default} if absent. The spelling "
                f"`{VERSION_HEADERS[0]}` works too."
            ),
        }
    ]


def _predict(
    contract: Contract, schema: RequestSchema, operation: str, parameters: list[dict[str, Any]]
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": ref("Request")}
    examples = _examples(contract, schema)
    if examples:
        content["examples"] = examples
    answered = {
        "description": "The predictions of all rows.",
        "headers": {"serve-model-version": {"schema": {"type": "string"}, "description": "The version that answered."}},
        "content": {"application/json": {"schema": ref("Answer")}},
    }
    return {
        "operationId": operation,
        "summary": "Predict",
        "tags": ["Predictions"],
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {"200": answered, **problems()},
    }


def _stream(
    contract: Contract, schema: RequestSchema, operation: str, parameters: list[dict[str, Any]]
) -> dict[str, Any]:
    described = _predict(contract, schema, operation, parameters)
    answered = {
        "description": (
            "One JSON value per event; an event `done` at the end, or `error` with a problem if the model failed on "
            "the way."
        ),
        "headers": described["responses"]["200"]["headers"],
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    responses = {"200": answered, **problems(errors.StreamingUnsupported)}
    return described | {"summary": "Predict one row, piece by piece", "responses": responses}


def problems(*more: type[RegistryServeError]) -> dict[str, Any]:
    """Return the error answers of a prediction, and ``more``, by status."""
    told: dict[str, list[str]] = {}
    for error in (*PREDICTION_ERRORS, *more):
        told.setdefault(str(error.status), []).append(f"{error.title} (`{error.code}`)")
    content = {"application/problem+json": {"schema": ref("Problem")}}
    return {status: {"description": "; or: ".join(reasons), "content": content} for status, reasons in told.items()}


def get(operation: str, summary: str, *, unready: bool = False) -> dict[str, Any]:
    """Return the operation of a page about the deployment."""
    responses: dict[str, Any] = {"200": {"description": summary, "content": {"application/json": {"schema": {}}}}}
    if unready:
        responses["503"] = {"description": "Not yet, or not any more"}
    return {"operationId": operation, "summary": summary, "tags": ["About"], "responses": responses}


def _schemas(contract: Contract, schema: RequestSchema) -> dict[str, Any]:
    signature = contract.default.card.signature
    row = ref("Row") if schema.row_json else {}
    rows = schema.inputs.json(row)
    envelope: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    if schema.row_json:
        envelope["properties"][schema.inputs_key] = rows
        envelope["required"].append(schema.inputs_key)
    if schema.params:
        envelope["properties"][schema.params_key] = ref("Params")
    request = {"anyOf": [*rows.get("anyOf", [rows]), envelope]} if schema.inputs.bare else envelope
    schemas = {
        "Request": request,
        "Answer": declared_answer_json(signature.outputs if signature else None),
        "Problem": PROBLEM,
    }
    if schema.row_json:
        schemas["Row"] = schema.row_json
    if schema.params:
        schemas["Params"] = schema.params_json
    return schemas


def _examples(contract: Contract, schema: RequestSchema) -> dict[str, Any]:
    body = example_body(contract.default.card.input_example, schema)
    return {} if body is None else dict(_variants(body, schema))


def _variants(body: Any, schema: RequestSchema) -> Iterator[tuple[str, dict[str, Any]]]:
    """Show the model's example as people will use it: one row, then many, then with params."""
    enveloped = isinstance(body, dict) and schema.inputs_key in body
    rows = body[schema.inputs_key] if enveloped else body
    if schema.inputs.bare and isinstance(rows, list) and rows:
        yield "one row", {"value": rows[0]}
    yield "the model's example", {"value": body}
    if schema.params and not enveloped and schema.row_json:
        params = {name: item["default"] for name, item in schema.params_json["properties"].items()}
        yield "with params", {"value": {schema.inputs_key: rows, schema.params_key: params}}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}
