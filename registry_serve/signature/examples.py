"""A model's input example, as MLflow stored it, in the form that the endpoint takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from registry_serve.errors import InvalidRequest
from registry_serve.signature.requests import Schema
from registry_serve.signature.rows import NamedColumns
from registry_serve.signature.schema import RequestSchema


def example_body(example: Any, schema: Schema) -> Any | None:
    """Translate a stored example into a body that the endpoint accepts.

    Args:
        example: what ``serving_input_example.json`` holds: MLflow's scoring protocol (``dataframe_split``,
            ``inputs``, ``params``), or the bare object of a chat model.
        schema: the requests of the version that the example belongs to.

    Returns:
        The body, decoded, or None where the example cannot be said in JSON that this schema accepts, or the schema is
        no signature's.
    """
    if not isinstance(schema, RequestSchema):
        return None
    body = _without_nan(_translated(example, schema))
    try:
        schema.check(body)
    except InvalidRequest:
        return None
    return body


def _translated(example: Any, schema: RequestSchema) -> Any:
    if not isinstance(example, Mapping):
        return example
    params = example.get("params")
    if "dataframe_split" in example:
        rows = _split_rows(example["dataframe_split"], schema)
    elif "inputs" in example:
        rows = _rows(example["inputs"], schema)
    elif example.keys() == {"params"}:
        return {schema.params_key: params}
    else:
        return dict(example)
    if params:
        return {schema.inputs_key: rows, schema.params_key: params}
    return rows if schema.inputs.bare else {schema.inputs_key: rows}


def _split_rows(split: Mapping[str, Any], schema: RequestSchema) -> Any:
    rows = split["data"]
    if isinstance(schema.inputs, NamedColumns):
        # MLflow leaves out names that only count the columns.
        names = [str(name) for name in split.get("columns") or range(len(schema.inputs.columns))]
        return [dict(zip(names, row, strict=True)) for row in rows]
    if all(len(row) == 1 for row in rows) and schema.inputs.row_json.get("prefixItems") is None:
        return [row[0] for row in rows]
    return rows


def _rows(inputs: Any, schema: RequestSchema) -> Any:
    if not isinstance(schema.inputs, NamedColumns) or not isinstance(inputs, Mapping):
        return inputs
    columns = {str(name): values for name, values in inputs.items()}
    if not all(isinstance(values, list) for values in columns.values()):
        return columns
    if any(not column.scalar for column in schema.inputs.columns):
        return columns
    return [dict(zip(columns, values, strict=False)) for values in zip(*columns.values(), strict=False)]


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value
