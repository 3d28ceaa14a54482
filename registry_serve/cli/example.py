"""A request to try an endpoint with, as its API documentation has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Values of JSON Schema's types; objects and arrays are made of what is in them.
_VALUES = {"string": "some text", "integer": 1, "number": 0.5, "boolean": True, "null": None}


def example_request(document: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return a path and a body that will be answered, or None where the documentation knows none.

    Args:
        document: OpenAPI, of a registered model or of a handler.
    """
    paths, schemas = document["paths"], document["components"]["schemas"]
    if "/serve" in paths:
        examples = paths["/serve"]["post"]["requestBody"]["content"]["application/json"].get("examples")
        return ("/serve", next(iter(examples.values()))["value"]) if examples else None
    members = schemas["Inputs"].get("properties")
    if members is None:
        return None  # a handler of the older form, which takes any object
    body = {"inputs": [_sample(members["inputs"]["anyOf"][0]["items"], schemas)]}
    if parameters := _sample(members["parameters"], schemas):
        body["parameters"] = parameters
    return "/predict", body


def _sample(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """Make up a value that a schema allows, with no more in it than must be; formats and limits are not looked at."""
    if "$ref" in schema:
        return _sample(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for given in ("examples", "enum"):
        if schema.get(given):
            return schema[given][0]
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    if schema.get("anyOf"):
        return _sample(schema["anyOf"][0], schemas)
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * max(1, schema.get("minItems", 1))
        return [_sample(each, schemas) for each in items]
    if schema.get("type") == "object":
        members = schema.get("properties", {})
        return {name: _sample(members[name], schemas) for name in schema.get("required", ())}
    return _VALUES.get(schema.get("type", "string"), "some text")
