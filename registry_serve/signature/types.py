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

from functools import partial
from typing import Any

from mlflow.types.schema import AnyType, Array, DataType, Map, Object
from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator
from pydantic_core import core_schema as cs

from registry_serve.errors import SignatureUnsupported
from registry_serve.signature.scalars import Form, Target, converted, scalar, without_final_nul

_ANY_KEY = "*"
_MOST_UNKNOWN = 20


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
        form = scalar(type_, target)
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
    if type_.dtype in (DataType.string, DataType.binary) and target is not Target.PYTHON:
        items = without_final_nul(items)  # on its way through MLflow the array is one of NumPy's
    # A million wrong elements would be a million faults: an array tells its first.
    form = Form(
        cs.list_schema(items.core, strict=True, fail_fast=True),
        {"type": "array", "items": items.json},
    )
    return form, nullable or isinstance(type_.dtype, AnyType)


def _map(type_: Map, target: Target, nullable: bool) -> tuple[Form, bool]:
    values = form_of(type_.value_type, _inner(target), nullable=nullable)
    check = SchemaValidator(cs.typed_dict_schema({_ANY_KEY: cs.typed_dict_field(values.core)}))
    form = Form(
        converted(cs.dict_schema(strict=True), partial(_each_value, check)),
        {"type": "object", "additionalProperties": values.json},
    )
    return form, nullable or isinstance(type_.value_type, AnyType)


def _each_value(check: SchemaValidator, value: dict[Any, Any]) -> dict[str, Any]:
    """Check a map's values up to the first that does not fit. Its place has no key: the keys are the caller's data."""
    if not all(type(key) is str for key in value):
        raise PydanticCustomError("type", "must have strings as keys")
    return {key: check.validate_python({_ANY_KEY: item})[_ANY_KEY] for key, item in value.items()}


def object_core(fields: dict[str, cs.TypedDictField]) -> CoreSchema:
    """Return the check of an object with these fields and no others."""
    core = cs.typed_dict_schema(fields, extra_behavior="forbid", strict=True)
    return cs.no_info_before_validator_function(partial(_not_crowded, len(fields) + _MOST_UNKNOWN), core)


def _not_crowded(most: int, value: Any) -> Any:
    """Refuse an object with very many keys as a whole: each unknown one would be a fault of its own."""
    if isinstance(value, dict) and len(value) > most:
        raise PydanticCustomError("type", "has too many keys that are not in the model's signature")
    return value


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
        object_core(fields),
        {
            "type": "object",
            "properties": properties,
            "required": [item.name for item in type_.properties if item.required is not False],
            "additionalProperties": False,
        },
    )
