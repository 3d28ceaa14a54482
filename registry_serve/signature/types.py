"""MLflow types as JSON: what a value of each type may look like, checked in Rust, and what it becomes.

| MLflow type                | JSON                                    | reaches ``predict`` as                        |
|----------------------------|-----------------------------------------|-----------------------------------------------|
| boolean                    | true, false                             | bool                                          |
| integer, long              | whole number in range (3.0 is 3)        | int32, int64                                  |
| float, double              | number, null for NaN                    | float32, float64                              |
| string                     | string                                  | str                                           |
| binary                     | string, base64                          | bytes                                         |
| datetime                   | string, ISO 8601, offsets become UTC    | datetime64[ns]                                |
| Array, Map, Object         | array, object, object                   | list, dict, dict with exactly typed leaves    |
| AnyType                    | any value                               | as it came                                    |

The checks accept what ``PyFuncModel.predict`` accepts from Python and nothing that would have to be changed to fit:
a JSON number is cast only where nothing is lost. MLflow looks at the exact NumPy type of nested values (a plain int
is refused for an Array of integer), so nested leaves become NumPy scalars here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from mlflow.types.schema import AnyType, Array, DataType, Map, Object
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core import core_schema as cs

from registry_serve.errors import SignatureUnsupported


class Target(Enum):
    """Where a value is going, which decides what its leaves become."""

    COLUMN = "a column of a frame: leaves stay plain Python, the column gives them their dtype"
    NESTED = "inside an Array, Map or Object of a column: leaves become NumPy scalars"
    PYTHON = "a param or a type-hint model: leaves stay plain Python"


@dataclass(frozen=True)
class Form:
    """One type's JSON form.

    Attributes:
        core: the check, for ``pydantic_core.SchemaValidator``; works on values that ``from_json`` made.
        json: the same for people and generators: a JSON Schema (OpenAPI 3.1).
    """

    core: CoreSchema
    json: dict[str, Any]


_EXACT_IN_DOUBLE = 2**53
_ISO_8601 = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?([Zz]|[+-]\d{2}(:?\d{2})?)?)?", re.ASCII
)
_OPENAPI_FORMATS = {"float32": "float", "float64": "double"}


def form_of(type_: Any, target: Target, *, nullable: bool = False) -> Form:
    """Return the JSON form of an MLflow type.

    Args:
        type_: a ``DataType``, ``Array``, ``Map``, ``Object`` or ``AnyType``.
        target: where the value goes.
        nullable: null is accepted although the type would refuse it.

    Raises:
        SignatureUnsupported: a type this version of the package does not know.
    """
    if isinstance(type_, DataType):
        form = _scalar(type_, target)
    elif isinstance(type_, Array):
        form, nullable = _array(type_, target, nullable)
    elif isinstance(type_, Map):
        form, nullable = _map(type_, target, nullable)
    elif isinstance(type_, Object):
        form = _object(type_, target)
    elif isinstance(type_, AnyType):
        return Form(cs.no_info_after_validator_function(_finite_everywhere, cs.any_schema()), {})
    else:
        raise SignatureUnsupported(f"The signature holds a type without a JSON form: {type_!r}.")
    return _or_null(form) if nullable else form


def _or_null(form: Form) -> Form:
    json = dict(form.json)
    if isinstance(json.get("type"), str):
        json["type"] = [json["type"], "null"]
    return Form(cs.nullable_schema(form.core), json)


def _explained(core: CoreSchema, message: str) -> CoreSchema:
    """Give a check one message, whatever the reason it refuses a value."""
    return cs.custom_error_schema(core, custom_error_type="type", custom_error_message=message)


def _converted(core: CoreSchema, convert: Callable[[Any], Any]) -> CoreSchema:
    return cs.no_info_after_validator_function(convert, core)


# --- scalars ---------------------------------------------------------------------------------------------------------


def _scalar(type_: DataType, target: Target) -> Form:
    if type_ == DataType.boolean:
        return Form(_explained(cs.bool_schema(strict=True), "must be true or false"), {"type": "boolean"})
    if type_ == DataType.integer:
        return whole_number(-(2**31), 2**31 - 1, "int32", np.int32 if target is Target.NESTED else None)
    if type_ == DataType.long:
        return whole_number(-(2**63), 2**63 - 1, "int64")
    if type_ == DataType.float and target is not Target.PYTHON:  # MLflow never narrows a param to float32
        return real_number("float32", _float32_or_nan if target is Target.NESTED else None)
    if type_ in (DataType.float, DataType.double):
        return real_number("float64", _nan_for_none if target is Target.NESTED else None)
    if type_ == DataType.string:
        return Form(_explained(cs.str_schema(strict=True), "must be a string"), {"type": "string"})
    if type_ == DataType.binary:
        core = _converted(cs.str_schema(strict=True), _decode_base64)
        return Form(_explained(core, "must be a base64 string"), {"type": "string", "format": "byte"})
    if type_ == DataType.datetime:
        convert = {Target.COLUMN: _timestamp, Target.NESTED: _datetime64, Target.PYTHON: _datetime}[target]
        core = _converted(cs.str_schema(strict=True), convert)
        message = "must be a string in ISO 8601, such as '2024-05-01T12:30:00', between 1678 and 2261"
        return Form(_explained(core, message), {"type": "string", "format": "date-time"})
    raise SignatureUnsupported(f"The signature holds a type without a JSON form: {type_!r}.")


def whole_number(low: int, high: int, name: str, convert: Callable[[int], Any] | None = None) -> Form:
    """Return the form of whole numbers in a range; 3.0 is 3, and 3.5, "3" and true are refused."""
    # Beyond 2^53 a number written with a decimal point has already lost digits before we see it.
    reach = cs.float_schema(ge=max(low, -_EXACT_IN_DOUBLE), le=min(high, _EXACT_IN_DOUBLE))
    core: CoreSchema = cs.union_schema(
        [
            cs.int_schema(strict=True, ge=low, le=high),
            cs.chain_schema([cs.is_instance_schema(float), _converted(reach, _without_fraction)]),
        ],
        mode="left_to_right",
        custom_error_type="type",
        custom_error_message=f"must be a whole number from {low} to {high}",
    )
    json: dict[str, Any] = {"type": "integer", "format": name}
    if name not in ("int32", "int64"):  # the formats that OpenAPI defines imply their range
        json |= {"minimum": low, "maximum": high}
    return Form(_converted(core, convert) if convert else core, json)


def _without_fraction(value: float) -> int:
    if not value.is_integer():
        raise PydanticCustomError("type", "has a fraction")
    return int(value)


def real_number(dtype: str, convert: Callable[[float | None], Any] | None = None) -> Form:
    """Return the form of numbers that a NumPy float type can hold, null standing for NaN.

    Decimals are rounded to the nearest value, as a literal in Python is; whole numbers must be held exactly, and a
    number so large or so small that it would become infinite or zero is refused.
    """
    info = np.finfo(dtype)
    largest, smallest, exact = float(info.max), float(info.smallest_subnormal), 2 ** (info.nmant + 1)
    is_float = cs.is_instance_schema(float)
    core: CoreSchema = cs.union_schema(
        [
            cs.int_schema(strict=True, ge=-exact, le=exact),
            cs.chain_schema([is_float, cs.float_schema(ge=smallest, le=largest)]),
            cs.chain_schema([is_float, cs.float_schema(ge=-largest, le=-smallest)]),
            cs.no_info_plain_validator_function(partial(_exactly, np.dtype(dtype))),
        ],
        mode="left_to_right",
        custom_error_type="type",
        custom_error_message=f"must be a number that {dtype} can hold (whole numbers exactly)",
    )
    core = cs.nullable_schema(core)
    json = {"type": ["number", "null"], "format": _OPENAPI_FORMATS.get(dtype, dtype)}
    return Form(_converted(core, convert) if convert else core, json)


def _exactly(dtype: np.dtype[Any], value: Any) -> float:
    """Accept zero, and the large whole numbers that the type holds exactly (2**60 for one)."""
    if type(value) is int or value == 0.0:
        try:
            with np.errstate(over="ignore"):
                held = float(dtype.type(value))
            if int(held) == value and type(value) is not bool:
                return held
        except OverflowError:
            pass
    raise PydanticCustomError("type", "is not exact")


def _nan_for_none(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _float32_or_nan(value: float | None) -> np.float32:
    return np.float32("nan" if value is None else value)


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PydanticCustomError("type", "is not base64") from error


def _timestamp(text: str) -> pd.Timestamp:
    if not _ISO_8601.fullmatch(text):
        raise PydanticCustomError("type", "is not ISO 8601")
    try:
        moment = pd.Timestamp(text.replace(",", ".").upper())
        if moment.tzinfo is not None:
            moment = moment.tz_convert("UTC").tz_localize(None)
        return moment.as_unit("ns")
    except ValueError as error:  # no such day, or outside the range of 64-bit nanoseconds
        raise PydanticCustomError("type", "is no moment in time") from error


def _datetime64(text: str) -> np.datetime64:
    return _timestamp(text).to_datetime64()


def _datetime(text: str) -> Any:
    moment = _timestamp(text)
    if moment.nanosecond:
        raise PydanticCustomError("type", "is finer than microseconds")
    return moment.to_pydatetime()


def _finite_everywhere(value: Any) -> Any:
    """Refuse what a literal such as 1e999 becomes: JSON has no infinity, and no caller meant one."""
    if isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise PydanticCustomError("type", "holds a number outside the range of float64")
    elif isinstance(value, dict):
        for item in value.values():
            _finite_everywhere(item)
    elif isinstance(value, list):
        for item in value:
            _finite_everywhere(item)
    return value


# --- nested types ----------------------------------------------------------------------------------------------------


def _inner(target: Target) -> Target:
    return Target.NESTED if target is Target.COLUMN else target


def _array(type_: Array, target: Target, nullable: bool) -> tuple[Form, bool]:
    # MLflow passes its leniency for missing values on to arrays of arrays, but not to scalars in an array: there
    # it would cut strings short ("hello" beside a null becomes "h") and turn a missing boolean into False.
    inner_nullable = nullable and not isinstance(type_.dtype, DataType)
    items = form_of(type_.dtype, _inner(target), nullable=inner_nullable)
    form = Form(
        cs.list_schema(items.core, strict=True),
        {"type": "array", "items": items.json},
    )
    return form, nullable or isinstance(type_.dtype, AnyType)


def _map(type_: Map, target: Target, nullable: bool) -> tuple[Form, bool]:
    values = form_of(type_.value_type, _inner(target), nullable=nullable)
    form = Form(
        cs.dict_schema(cs.str_schema(), values.core, strict=True),
        {"type": "object", "additionalProperties": values.json},
    )
    return form, nullable or isinstance(type_.value_type, AnyType)


def _object(type_: Object, target: Target) -> Form:
    fields: dict[str, cs.TypedDictField] = {}
    properties: dict[str, Any] = {}
    for item in type_.properties:
        required = item.required is not False
        form = form_of(item.dtype, _inner(target), nullable=not required)
        # What a type-hint model requires is not in its signature (a field with a default looks required).
        lenient = target is Target.PYTHON
        core = cs.nullable_schema(form.core) if lenient else form.core
        fields[item.name] = cs.typed_dict_field(core, required=required and not lenient)
        properties[item.name] = form.json
    return Form(
        cs.typed_dict_schema(fields, extra_behavior="forbid", strict=True),
        {
            "type": "object",
            "properties": properties,
            "required": [item.name for item in type_.properties if item.required is not False],
            "additionalProperties": False,
        },
    )
