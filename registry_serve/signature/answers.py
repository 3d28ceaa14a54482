"""Predictions -> JSON. MLflow never enforces outputs, so the value alone decides the shape of the answer.

| the model answers, for n rows                                       | the client gets                          |
|---------------------------------------------------------------------|------------------------------------------|
| a DataFrame                                                         | a list of records                        |
| a list of n dicts                                                   | the same list                            |
| a dict of lists of length n, where the declared outputs are columns | a list of n records                      |
| a list, Series or array                                             | a list                                   |
| anything else                                                       | the value                                |

| value                                | JSON                      | value           | JSON                     |
|--------------------------------------|---------------------------|-----------------|--------------------------|
| NaN, infinities, NaT, pd.NA          | null                      | bytes           | base64                   |
| datetime, date, Timestamp, datetime64| ISO 8601                  | timedelta       | ISO 8601 duration        |
| NumPy and pandas scalars             | the plain value           | Decimal, UUID   | string                   |
| tensors, sparse matrices             | nested lists              | Enum            | its value                |
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pandas as pd
from mlflow.types import Schema
from mlflow.types.schema import Array, ColSpec, TensorSpec
from pydantic import BaseModel

from registry_serve.signature.scalars import Target
from registry_serve.signature.tensors import Tensor
from registry_serve.signature.types import form_of

_AS_THEY_ARE = frozenset({type(None), str, bool, int})
_AS_STRINGS = (decimal.Decimal, uuid.UUID)


def answer(prediction: Any, count: int, outputs: Schema | None) -> Any:
    """Turn what ``predict`` returned into plain JSON values.

    Args:
        prediction: any object.
        count: number of rows that the request had.
        outputs: the declared outputs, if any.

    Raises:
        TypeError: the prediction holds something without a JSON form.
    """
    if isinstance(prediction, pd.DataFrame):
        return _frame_records(prediction)
    if isinstance(prediction, Mapping) and _is_columns(prediction, count, outputs):
        return _records(list(prediction), list(prediction.values()), count)
    return plain(prediction)


def _frame_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    # By position: of two columns with one name, the name would give both.
    return _records(list(frame.columns), [frame.iloc[:, position] for position in range(frame.shape[1])], len(frame))


def _records(names: Sequence[Any], columns: Sequence[Any], count: int) -> list[dict[str, Any]]:
    keys = _keys(names, "columns")
    if not keys:
        return [{} for _ in range(count)]
    return [dict(zip(keys, values, strict=True)) for values in zip(*map(plain, columns), strict=True)]


def _keys(names: Sequence[Any], what: str) -> list[str]:
    keys = [_key(name) for name in names]
    if len(set(keys)) < len(keys):
        twice = next(key for key, times in Counter(keys).items() if times > 1)
        raise TypeError(f"two {what} are called {twice!r}, which has no JSON form")
    return keys


def _key(name: Any) -> str:
    while isinstance(name, enum.Enum):
        name = name.value
    return str.__str__(name) if isinstance(name, str) else str(name)


def _is_columns(prediction: Mapping[Any, Any], count: int, outputs: Schema | None) -> bool:
    if outputs is None or outputs.is_tensor_spec() or not prediction:
        return False
    if any(isinstance(column.type, Array) for column in outputs.inputs):
        return False
    return all(_is_list(values) and len(values) == count for values in prediction.values())


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, pd.Series)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def plain(value: Any) -> Any:
    """Return the value made of None, bool, int, float, str, list and dict with string keys only.

    Raises:
        TypeError: something without a JSON form.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    # The common containers first: an answer of a thousand rows comes by here a thousand times.
    if kind is list:
        return [item if type(item) in _AS_THEY_ARE else plain(item) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: item if type(item) in _AS_THEY_ARE else plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):  # before the plain types: of a class that is both, str() is the member's name
        return plain(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return dict(zip(_keys(list(value), "keys"), map(plain, value.values()), strict=True))
    if isinstance(value, (list, tuple, AbstractSet)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    if isinstance(value, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return _plain_array(np.asarray(value)) if isinstance(value.dtype, np.dtype) else [plain(item) for item in value]
    return _plain_scalar(value)


def _plain_array(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)  # tolist() knows no plain form of a long double
    if array.dtype.kind == "f" and np.isfinite(array).all():
        return array.tolist()
    if array.ndim == 0:
        return plain(array[()])
    return [plain(item) for item in array]


def _plain_scalar(value: Any) -> Any:
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (dt.timedelta, np.timedelta64)):
        span = pd.Timedelta(value)
        return None if pd.isna(span) else span.isoformat()
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else pd.Timestamp(value).isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (np.integer, np.bool_, np.floating)):
        return plain(value.item()) if not isinstance(value, np.longdouble) else plain(float(value))
    if isinstance(value, _AS_STRINGS):
        return str(value)
    return _plain_container(value)


def _plain_container(value: Any) -> Any:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, pd.DataFrame):
        return _frame_records(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "toarray"):
        return plain(value.toarray())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no JSON form")


def declared_answer_json(outputs: Schema | None) -> dict[str, Any]:
    """Return the JSON Schema of the answer as far as the declared outputs tell; they are a promise, no check."""
    if outputs is None:
        return {}
    if outputs.is_tensor_spec():
        tensors = [Tensor.of(spec) for spec in outputs.inputs if isinstance(spec, TensorSpec)]
        if tensors[0].name is None:
            return tensors[0].json
        return {"type": "object", "properties": {str(tensor.name): tensor.json for tensor in tensors}}
    if not outputs.has_input_names():
        return {"type": "array", "items": _output_json(outputs.inputs[0])}
    return {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {str(column.name): _output_json(column) for column in outputs.inputs},
            "required": [str(column.name) for column in outputs.inputs if column.required is not False],
        },
    }


def _output_json(column: ColSpec | TensorSpec) -> dict[str, Any]:
    return form_of(column.type, Target.COLUMN, nullable=column.required is False).json


def mismatch(answered: Any, outputs: Schema | None) -> str | None:
    """Compare the names in an answer with the declared outputs.

    Returns:
        A sentence that names the difference, or None where there is none (or nothing to compare).
    """
    if outputs is None or outputs.is_tensor_spec() or not outputs.has_input_names():
        return None
    record = answered[0] if isinstance(answered, list) and answered else answered
    if not isinstance(record, dict):
        return None if answered == [] else "declared named outputs, answered without names"
    declared = {str(column.name): column.required is not False for column in outputs.inputs}
    missing = sorted(name for name, required in declared.items() if required and name not in record)
    undeclared = sorted(record.keys() - declared.keys())
    parts = [
        f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("undeclared", undeclared)) if names
    ]
    return "; ".join(parts) or None
