"""Single values as JSON: the check of each, in Rust wherever it can be, and what the value becomes."""

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
from mlflow.types.schema import DataType
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


def _explained(core: CoreSchema, message: str) -> CoreSchema:
    """Give a check one message, whatever the reason it refuses a value."""
    return cs.custom_error_schema(core, custom_error_type="type", custom_error_message=message)


def converted(core: CoreSchema, convert: Callable[[Any], Any]) -> CoreSchema:
    """Let a function have what a check has accepted."""
    return cs.no_info_after_validator_function(convert, core)


def scalar(type_: DataType, target: Target) -> Form:
    """Return the JSON form of one of MLflow's scalar types, without null (which is NaN for float and double).

    Raises:
        SignatureUnsupported: a type this version of the package does not know.
    """
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
        core = converted(cs.str_schema(strict=True), _decode_base64)
        return Form(_explained(core, "must be a base64 string"), {"type": "string", "format": "byte"})
    if type_ == DataType.datetime:
        convert = {Target.COLUMN: _timestamp, Target.NESTED: _datetime64, Target.PYTHON: _datetime}[target]
        core = converted(cs.str_schema(strict=True), convert)
        message = "must be a string in ISO 8601, such as '2024-05-01T12:30:00', between 1678 and 2261"
        return Form(_explained(core, message), {"type": "string", "format": "date-time"})
    raise SignatureUnsupported(f"The signature holds a type without a JSON form: {type_!r}.")


def whole_number(low: int, high: int, name: str, convert: Callable[[int], Any] | None = None) -> Form:
    """Return the form of whole numbers in a range; 3.0 is 3, and 3.5, "3" and true are refused."""
    whole = cs.union_schema(
        [cs.int_schema(strict=True), converted(cs.is_instance_schema(float), _without_fraction)],
        mode="left_to_right",
        custom_error_type="type",
        custom_error_message="must be a whole number",
    )
    message = f"must be from {low} to {high}"
    if high > _EXACT_IN_DOUBLE:
        message += ", and beyond 2**53 be written without a decimal point"
    core: CoreSchema = cs.chain_schema([whole, _explained(cs.int_schema(strict=True, ge=low, le=high), message)])
    json: dict[str, Any] = {"type": "integer", "format": name}
    if name not in ("int32", "int64"):  # the formats that OpenAPI defines imply their range
        json |= {"minimum": low, "maximum": high}
    return Form(converted(core, convert) if convert else core, json)


def _without_fraction(value: float) -> float:
    if not value.is_integer():
        raise PydanticCustomError("type", "has a fraction")
    # Beyond 2^53 a number written with a decimal point has already lost digits before we see it: it stays a float,
    # which the range refuses.
    return int(value) if abs(value) <= _EXACT_IN_DOUBLE else value


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
            # The most common ones first; the choices exclude each other.
            cs.chain_schema([is_float, cs.float_schema(ge=smallest, le=largest)]),
            cs.chain_schema([is_float, cs.float_schema(ge=-largest, le=-smallest)]),
            cs.int_schema(strict=True, ge=-exact, le=exact),
            cs.chain_schema([is_float, cs.float_schema(ge=0, le=0)]),
            cs.no_info_plain_validator_function(partial(_exactly, np.dtype(dtype))),
        ],
        mode="left_to_right",
        custom_error_type="type",
        custom_error_message=f"must be a number that {dtype} can hold (whole numbers exactly)",
    )
    core = cs.nullable_schema(core)
    json = {"type": ["number", "null"], "format": _OPENAPI_FORMATS.get(dtype, dtype)}
    return Form(converted(core, convert) if convert else core, json)


def _exactly(dtype: np.dtype[Any], value: Any) -> float:
    """Accept the large whole numbers that the type holds exactly (2**60 for one)."""
    if type(value) is int:
        try:
            with np.errstate(over="ignore"):
                held = float(dtype.type(value))
            if int(held) == value:
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


def without_final_nul(form: Form) -> Form:
    """Refuse what NumPy's fixed-width strings and bytes would cut short."""
    return Form(converted(form.core, _not_cut), form.json)


def _not_cut(value: Any) -> Any:
    if value.endswith("\0" if isinstance(value, str) else b"\0"):
        raise PydanticCustomError("type", "must not end in a NUL character")
    return value


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
