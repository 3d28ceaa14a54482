"""Two signatures -> the differences that break the contract, each with a sentence a person understands.

``exact``: the same columns, params and outputs. The order of named columns is no difference, nor is it whether an old
file says that a column is required (it is, unless it says otherwise).

``backward``: every request that is valid under the contract is valid for the other version, and everything that the
contract's answers promise is there. A new optional column, a new param (params have defaults), an input of a wider
type, one more output: none of these breaks a client.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Object, ParamSpec, Property, TensorSpec


class Compatibility(str, Enum):
    """How alike another version's signature must be."""

    EXACT = "exact"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Difference:
    """One difference between the contract and another signature.

    Attributes:
        where: ``inputs``, ``outputs`` or ``params``.
        column: name of the column, tensor or param; its position where it has no name; None for the whole part.
        kind: ``added``, ``removed``, ``type``, ``required``, ``shape``, ``default`` or ``form``.
        expected: what the contract has, as MLflow writes it; None for nothing.
        found: what the other version has.
        message: the same as a sentence.
    """

    where: str
    column: str | None
    kind: str
    expected: str | None
    found: str | None
    message: str

    def as_json(self) -> dict[str, Any]:
        """Return a mapping for an error's body."""
        return asdict(self)


def differences(
    contract: ModelSignature,
    other: ModelSignature,
    compatibility: Compatibility = Compatibility.EXACT,
    *,
    from_type_hint: tuple[bool, bool] = (False, False),
    one_row: tuple[bool, bool] = (False, False),
) -> list[Difference]:
    """Compare another version's signature with the contract.

    Args:
        contract: the default version's signature.
        other: the signature of the version asked for.
        compatibility: what counts as a difference.
        from_type_hint: for the two signatures, whether MLflow made them from type hints; such a model takes another
            form of input.
        one_row: for the two signatures, whether their models take one row per request only.

    Returns:
        The differences that break the contract; an empty list if there are none.
    """
    exact = compatibility is Compatibility.EXACT
    return [
        *_inputs(contract.inputs, other.inputs, exact, from_type_hint),
        *_row_count(exact, one_row),
        *_params(contract, other, exact),
        *_outputs(contract.outputs, other.outputs, exact),
    ]


# --- inputs and outputs ----------------------------------------------------------------------------------------------


def _form(schema: Schema | None, from_type_hint: bool = False) -> str:
    """Name the JSON form that a schema takes; two forms never agree."""
    if schema is None:
        return "nothing"
    kind = "tensors" if schema.is_tensor_spec() else "columns"
    name = f"{'named' if schema.has_input_names() else 'unnamed'} {kind}"
    if not schema.has_input_names() and kind == "columns":
        one = len(schema.inputs) == 1
        scalar = all(isinstance(spec.type, DataType) for spec in schema.inputs)
        name = (
            f"{'one' if one else 'several'} unnamed {'scalar' if scalar else 'nested'} {'column' if one else 'columns'}"
        )
    return name + (" from a type hint" if from_type_hint else "")


def _envelope(schema: Schema | None) -> bool:
    """Say whether a column is called as a key of the envelope is, which renames those keys."""
    return schema is not None and bool({"inputs", "params"} & {str(spec.name) for spec in schema.inputs})


def _inputs(
    contract: Schema | None, other: Schema | None, exact: bool, hints: tuple[bool, bool]
) -> Iterator[Difference]:
    expected, found = _form(contract, hints[0]), _form(other, hints[1])
    if expected != found:
        yield Difference("inputs", None, "form", expected, found, f"inputs are {found}, not {expected}")
        return
    if contract is None or other is None:
        return
    if _envelope(contract) != _envelope(other):
        keys = ["'$inputs'" if _envelope(schema) else "'inputs'" for schema in (contract, other)]
        message = f"a column's name turns the envelope's key {keys[0]} into {keys[1]}"
        yield Difference("inputs", None, "form", keys[0], keys[1], message)
    yield from _columns("inputs", contract, other, exact, _accepts)


def _row_count(exact: bool, one_row: tuple[bool, bool]) -> Iterator[Difference]:
    if one_row[0] == one_row[1] or (one_row[0] and not exact):
        return
    expected, found = ("one row" if one else "any number of rows" for one in one_row)
    message = f"inputs are {found} per request, not {expected}"
    yield Difference("inputs", None, "form", expected, found, message)


def _outputs(contract: Schema | None, other: Schema | None, exact: bool) -> Iterator[Difference]:
    if contract is None and not exact:
        return
    expected, found = _form(contract), _form(other)
    if expected != found:
        yield Difference("outputs", None, "form", expected, found, f"outputs are {found}, not {expected}")
        return
    if contract is not None and other is not None:
        yield from _columns("outputs", contract, other, exact, lambda wide, narrow: _accepts(narrow, wide))


def _columns(where: str, contract: Schema, other: Schema, exact: bool, fits: Any) -> Iterator[Difference]:
    expected, found = _by_name(contract), _by_name(other)
    for name, spec in expected.items():
        if name not in found:
            message = f"{where[:-1]} {name!r} is missing"
            yield Difference(where, name, "removed", _said(spec), None, message)
        else:
            yield from _column(where, name, spec, found[name], exact, fits)
    for name, spec in found.items():
        if name in expected or (not exact and (where == "outputs" or not _required(spec))):
            continue
        message = f"{where[:-1]} {name!r} ({_said(spec)}) is new"
        yield Difference(where, name, "added", None, _said(spec), message)


def _column(
    where: str, name: str, expected: ColSpec | TensorSpec, found: ColSpec | TensorSpec, exact: bool, fits: Any
) -> Iterator[Difference]:
    what = f"{where[:-1]} {name!r}"
    same_type = _same(expected.type, found.type) if exact else fits(expected.type, found.type)
    if not same_type:
        message = f"{what} is {_typed(found.type)}, not {_typed(expected.type)}"
        yield Difference(where, name, "type", _typed(expected.type), _typed(found.type), message)
    if isinstance(expected, TensorSpec) and isinstance(found, TensorSpec):
        if expected.shape != found.shape if exact else not _shape_fits(where, expected.shape, found.shape):
            message = f"{what} has shape {found.shape}, not {expected.shape}"
            yield Difference(where, name, "shape", str(expected.shape), str(found.shape), message)
        return
    if _required(expected) != _required(found):
        broken = _required(found) if where == "inputs" else _required(expected)
        if exact or broken:
            words = {True: "required", False: "optional"}
            message = f"{what} is {words[_required(found)]}, not {words[_required(expected)]}"
            yield Difference(where, name, "required", words[_required(expected)], words[_required(found)], message)


def _by_name(schema: Schema) -> dict[str, ColSpec | TensorSpec]:
    return {str(position if spec.name is None else spec.name): spec for position, spec in enumerate(schema.inputs)}


def _required(spec: Any) -> bool:
    return spec.required is not False


def _shape_fits(where: str, expected: tuple[int, ...], found: tuple[int, ...]) -> bool:
    wide, narrow = (found, expected) if where == "inputs" else (expected, found)
    return len(wide) == len(narrow) and all(a in (-1, b) for a, b in zip(wide, narrow, strict=True))


# --- types -----------------------------------------------------------------------------------------------------------

# Whole numbers are only cast where nothing is lost, so a long does not fit a double, nor an integer a float.
_WIDER = (
    (DataType.integer, DataType.long),
    (DataType.integer, DataType.double),
    (DataType.float, DataType.double),
)


def _accepts(narrow: Any, wide: Any) -> bool:
    """Say whether every value of one type is a value of the other."""
    if isinstance(wide, AnyType):
        return True
    if isinstance(narrow, np.dtype):
        return isinstance(wide, np.dtype) and _dtype_accepts(narrow, wide)
    if isinstance(narrow, DataType) or isinstance(wide, DataType):
        return narrow == wide or (narrow, wide) in _WIDER
    if isinstance(narrow, Array) and isinstance(wide, Array):
        return _accepts(narrow.dtype, wide.dtype)
    if isinstance(narrow, Map) and isinstance(wide, Map):
        return _accepts(narrow.value_type, wide.value_type)
    if isinstance(narrow, Object) and isinstance(wide, Object):
        return _object_accepts(narrow, wide)
    return False


def _object_accepts(narrow: Object, wide: Object) -> bool:
    given, taken = _properties(narrow), _properties(wide)
    return all(
        name in taken and _accepts(item.dtype, taken[name].dtype) and (_required(item) or not _required(taken[name]))
        for name, item in given.items()
    ) and all(name in given or not _required(item) for name, item in taken.items())


def _dtype_accepts(narrow: np.dtype[Any], wide: np.dtype[Any]) -> bool:
    if narrow == wide or wide == np.dtype("O"):
        return True
    if narrow.kind in "iu" and wide.kind == "f":
        return narrow.itemsize < wide.itemsize and np.can_cast(narrow, wide)
    return narrow.kind in "iuf" and wide.kind in "iuf" and np.can_cast(narrow, wide)


def _same(expected: Any, found: Any) -> bool:
    """Compare two types, taking what an old file leaves out for its default."""
    if isinstance(expected, Array) and isinstance(found, Array):
        return _same(expected.dtype, found.dtype)
    if isinstance(expected, Map) and isinstance(found, Map):
        return _same(expected.value_type, found.value_type)
    if isinstance(expected, Object) and isinstance(found, Object):
        ours, theirs = _properties(expected), _properties(found)
        return ours.keys() == theirs.keys() and all(
            _same(item.dtype, theirs[name].dtype) and _required(item) == _required(theirs[name])
            for name, item in ours.items()
        )
    return bool(expected == found)


def _properties(type_: Object) -> dict[str, Property]:
    return {item.name: item for item in type_.properties}


def _typed(type_: Any) -> str:
    return type_.name if isinstance(type_, (DataType, np.dtype)) else str(type_)


def _said(spec: ColSpec | TensorSpec) -> str:
    if isinstance(spec, TensorSpec):
        return f"{_typed(spec.type)} tensor of shape {spec.shape}"
    return f"{_typed(spec.type)}, {'required' if _required(spec) else 'optional'}"


# --- params ----------------------------------------------------------------------------------------------------------


def _params(contract: ModelSignature, other: ModelSignature, exact: bool) -> Iterator[Difference]:
    expected = {spec.name: spec for spec in contract.params.params} if contract.params else {}
    found = {spec.name: spec for spec in other.params.params} if other.params else {}
    for name, spec in expected.items():
        if name not in found:
            yield Difference("params", name, "removed", _typed(spec.dtype), None, f"param {name!r} is missing")
        else:
            yield from _param(name, spec, found[name], exact)
    if exact:
        for name in (name for name in found if name not in expected):
            kind = _typed(found[name].dtype)
            yield Difference("params", name, "added", None, kind, f"param {name!r} ({kind}) is new")


def _param(name: str, expected: ParamSpec, found: ParamSpec, exact: bool) -> Iterator[Difference]:
    same_type = _same(expected.dtype, found.dtype) if exact else _accepts(expected.dtype, found.dtype)
    if not same_type:
        kinds = _typed(expected.dtype), _typed(found.dtype)
        yield Difference("params", name, "type", *kinds, f"param {name!r} is {kinds[1]}, not {kinds[0]}")
    if expected.shape != found.shape:
        shapes = _shape(expected), _shape(found)
        yield Difference("params", name, "shape", *shapes, f"param {name!r} is {shapes[1]}, not {shapes[0]}")
    elif exact and repr(expected.default) != repr(found.default):
        defaults = repr(expected.default), repr(found.default)
        message = f"param {name!r} has the default {defaults[1]}, not {defaults[0]}"
        yield Difference("params", name, "default", *defaults, message)


def _shape(spec: ParamSpec) -> str:
    return "one value" if spec.shape is None else "a list"
