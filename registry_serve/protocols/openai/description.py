"""The paths of OpenAI's format in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from registry_serve import errors
from registry_serve.protocols.openai.requests import ChatRequest, CompletionRequest
from registry_serve.protocols.openapi import PREDICTION_ERRORS, get, ref

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string", "description": "What happened and what to do next."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": "string", "description": "A stable word for programs and alerts."},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_CHOICES = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {
            "type": "object",
            "properties": {
                name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
            },
        },
    },
    "required": ["id", "object", "created", "model", "choices"],
}
_STREAM = "With `stream`: an event for each part, the last of them `[DONE]`."


def paths() -> dict[str, Any]:
    """Return the paths; they refer to what ``schemas`` returns."""
    return {
        "/v1/completions": {"post": _post("completions", "Go on with texts", "CompletionRequest")},
        "/v1/chat/completions": {"post": _post("chat_completions", "Reply to a conversation", "ChatRequest")},
        "/v1/models": {"get": get("models", "The names that `model` may have")},
        "/v1/models/{model}": {
            "get": get("model", "One of these names")
            | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]}
        },
    }


def schemas() -> dict[str, Any]:
    """Return the schemas of requests, answers and errors."""
    described: dict[str, Any] = {"Completions": _CHOICES, "OpenAIError": _ERROR}
    kinds: tuple[type[BaseModel], ...] = (CompletionRequest, ChatRequest)
    for kind in kinds:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        described |= schema.pop("$defs", {})
        described[kind.__name__] = schema
    return {name: _shortly(schema) for name, schema in described.items()}


def _shortly(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with the first line of its description: the rest speaks to programmers."""
    first = schema.get("description", "").partition("\n")[0].replace("``", "`")
    return schema | {"description": first} if first else schema


def _post(operation: str, summary: str, body: str) -> dict[str, Any]:
    answered = {
        "description": f"The answers. {_STREAM}",
        "content": {
            "application/json": {"schema": ref("Completions")},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["OpenAI"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(body)}}},
        "responses": {"200": answered, **_errors()},
    }


def _errors() -> dict[str, Any]:
    told: dict[str, list[str]] = {}
    more: tuple[type[errors.RegistryServeError], ...] = (errors.ModelNotServed, errors.GenerationUnsupported)
    for error in (*PREDICTION_ERRORS, *more):
        told.setdefault(str(400 if error.status == 422 else error.status), []).append(error.title)
    content = {"application/json": {"schema": ref("OpenAIError")}}
    return {status: {"description": "; or: ".join(reasons), "content": content} for status, reasons in told.items()}
