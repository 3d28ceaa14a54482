"""Values of requests in OpenAI's format that come in several forms, and those that are refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_CONTENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
    ]
}


def _texts(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise PydanticCustomError("texts", "must be a text, or a list of texts")
    if any(isinstance(each, (int, list)) for each in texts):
        raise PydanticCustomError("texts", "must hold texts: lists of tokens are not taken")
    if not all(isinstance(each, str) for each in texts):
        raise PydanticCustomError("texts", "must be a text, or a list of texts")
    return tuple(texts)


def _stops(value: Any) -> Any:
    texts = _texts(value) if value != [] else ()
    if not all(texts):
        raise PydanticCustomError("stops", "must hold no empty text")
    return texts


def _content(value: Any) -> Any:
    """Make one text of the parts of a message."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError("parts", 'must be a text, or parts of the kind {"type": "text", "text": ...}')
    return "".join(part["text"] for part in value)


def _unused(value: Any) -> Any:
    if value:
        raise PydanticCustomError("unused", "cannot be used here: leave it out")
    return value


Unused = Annotated[Any, AfterValidator(_unused), WithJsonSchema({"description": "Refused, unless it is 0 or empty."})]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts), WithJsonSchema(_TEXTS)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_stops), WithJsonSchema(_TEXTS)]
Content = Annotated[str, BeforeValidator(_content), WithJsonSchema(_CONTENT)]
