"""The MLflow types of a handler's inputs, outputs and parameters: of an example, or of what it annotates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.types import Schema
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property
from pydantic import TypeAdapter

from registry_serve.errors import ConfigurationError

_ANY = AnyType()  # type: ignore[no-untyped-call]
_SCALARS = {
    "string": DataType.string,
    "integer": DataType.long,
    "number": DataType.double,
    "boolean": DataType.boolean,
}


def inputs_of_example(name: str, inputs: Sequence[Any]) -> Schema:
    """Return a schema with one column that takes such inputs."""
    inferred = infer_signature([{name: each} for each in inputs]).inputs.inputs[0]
    # Where the inputs have no type in common, MLflow forgets the column's name.
    type_ = inferred.type if inferred.name == name else _ANY
    return _one_column(name, type_, nullable=any(each is None for each in inputs))


def inputs_of_annotation(name: str, annotation: TypeAdapter[Any]) -> Schema:
    """Return a schema with one column that takes inputs as annotated."""
    document = annotation.json_schema()
    described, nullable = _unwrapped(document, document.get("$defs", {}))
    return _one_column(name, _type_of(described, document.get("$defs", {})), nullable=nullable)


def outputs_of_example(outputs: Sequence[Any]) -> Schema:
    """Return the schema of outputs, which are plain JSON values."""
    schema: Schema = infer_signature(model_output=list(outputs)).outputs
    return schema


def outputs_of_annotation(annotation: TypeAdapter[Any]) -> Schema:
    """Return the schema of outputs as annotated."""
    document = annotation.json_schema()
    described, _ = _unwrapped(document, document.get("$defs", {}))
    type_ = _type_of(described, document.get("$defs", {}))
    if isinstance(type_, Object):
        return Schema([ColSpec(each.dtype, each.name, each.required) for each in type_.properties])
    return Schema([ColSpec(type_)])


def params_of(parameters: Mapping[str, Any]) -> Any:
    """Return the ``ParamSchema`` of parameters with these defaults; None where there are none.

    Raises:
        ConfigurationError: the type of a default cannot be told.
    """
    for name, default in parameters.items():
        try:
            assert default != []
            infer_signature(params={name: default})
        except (AssertionError, MlflowException) as error:
            raise ConfigurationError(
                f"The parameter {name!r} needs a default that tells its type: a text, a number, true or false, or a "
                f"list with at least one of these. To give a type without one, pass signature=... yourself."
            ) from error
    return infer_signature(params=dict(parameters)).params if parameters else None


def _one_column(name: str, type_: Any, *, nullable: bool) -> Schema:
    # MLflow lets values be missing in a required column, but for whole numbers, arrays and objects. The column itself
    # must be there: of a frame without columns, MLflow loses the rows.
    if nullable and type_ == DataType.long:
        type_ = DataType.double
    elif nullable and not isinstance(type_, DataType):
        type_ = _ANY
    return Schema([ColSpec(type_, name)])


def _unwrapped(described: Mapping[str, Any], defined: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Follow a reference, and take null out of a choice of two."""
    if "$ref" in described:
        return _unwrapped(defined[described["$ref"].rpartition("/")[2]], defined)
    choices = [each for each in described.get("anyOf", ()) if each.get("type") != "null"]
    if len(choices) == 1:
        return _unwrapped(choices[0], defined)[0], True
    return described, False


def _type_of(described: Mapping[str, Any], defined: Mapping[str, Any]) -> Any:
    """Return the MLflow type of a JSON Schema, ``AnyType`` where there is none."""
    described, _ = _unwrapped(described, defined)
    kind = described.get("type")
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind == "array" and isinstance(described.get("items"), Mapping) and not described.get("prefixItems"):
        return Array(_type_of(described["items"], defined))
    if kind == "object" and described.get("properties"):
        required = described.get("required", ())
        members = described["properties"].items()
        return Object([Property(name, _type_of(each, defined), name in required) for name, each in members])
    return _ANY
