"""Tensors as nested JSON lists.

A tensor comes as one nested list, the whole batch at once, and becomes an ndarray of exactly the signature's dtype:
MLflow refuses any other. -1 in the signature's shape stands for a dimension of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.types.schema import AnyType, DataType, TensorSpec
from pydantic_core import PydanticCustomError, SchemaValidator, ValidationError, core_schema

from registry_serve.errors import SignatureUnsupported
from registry_serve.signature.scalars import Form, Target, converted, real_number, whole_number, without_final_nul
from registry_serve.signature.types import form_of

# Elements are checked some thousands at a time: in between, other threads have their turn.
_CHUNK = 10_000


class WrongTensor(ValueError):
    """The nested list is not a tensor of this kind.

    Attributes:
        location: indices of the offending place.
        message: what is wrong with it.
    """

    def __init__(self, location: tuple[int, ...], message: str) -> None:
        super().__init__(message)
        self.location = location
        self.message = message


@dataclass(frozen=True)
class Tensor:
    """One tensor of the signature: dtype and shape, with -1 for a free dimension."""

    name: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    element: Form

    @classmethod
    def of(cls, spec: TensorSpec) -> Tensor:
        """Read a tensor specification.

        Raises:
            SignatureUnsupported: a dtype that has no JSON form (complex numbers, time spans).
        """
        dtype = np.dtype(spec.type)
        return cls(spec.name, dtype, tuple(spec.shape), _element(dtype))

    @property
    def json(self) -> dict[str, Any]:
        """Its JSON Schema: arrays in arrays, fixed dimensions as exact lengths."""
        schema = self.element.json
        for length in reversed(self.shape):
            schema = {"type": "array", "items": schema}
            if length != -1:
                schema |= {"minItems": length, "maxItems": length}
        return schema

    def array(self, value: Any) -> npt.NDArray[Any]:
        """Turn a nested list into an ndarray.

        Raises:
            WrongTensor: another shape, or an element that does not fit the dtype.
        """
        try:
            sizes, leaves = _flatten(value, self.shape)
        except WrongTensor:
            # MLflow lets ragged arrays through where an inner dimension is free, as an object array of the items.
            if type(value) is list and -1 in self.shape[1:]:
                return self._ragged(value)
            raise
        return _filled(self._checked(leaves, sizes), self.dtype).reshape(sizes)

    def _ragged(self, value: list[Any]) -> npt.NDArray[Any]:
        inner = replace(self, shape=self.shape[1:])
        items = []
        for position, item in enumerate(value):
            try:
                items.append(inner.array(item))
            except WrongTensor as error:
                raise WrongTensor((position, *error.location), error.message) from None
        if self.shape[0] not in (-1, len(items)):
            raise WrongTensor((), f"must have {self.shape[0]} elements, not {len(items)}")
        return _filled(items, np.dtype("O"))

    def _checked(self, leaves: list[Any], sizes: tuple[int, ...]) -> list[Any]:
        checked: list[Any] = []
        for start in range(0, len(leaves), _CHUNK):
            try:
                checked += self.leaves.validate_python(leaves[start : start + _CHUNK])
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                raise WrongTensor(_place(start + int(first["loc"][0]), sizes), first["msg"]) from None
        return checked

    @cached_property
    def leaves(self) -> SchemaValidator:
        """The check of all elements, flattened."""
        return SchemaValidator(core_schema.list_schema(self.element.core, fail_fast=True))


def _filled(items: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype != np.dtype("O"):
        return np.array(items, dtype=dtype)
    array = np.empty(len(items), dtype="O")
    for position, item in enumerate(items):  # NumPy would look inside lists that are elements
        array[position] = item
    return array


def _flatten(value: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[Any]]:
    """Return the sizes of all dimensions, and the elements in C order."""
    level: list[Any] = [value]
    sizes: list[int] = []
    for depth, expected in enumerate(shape):
        lengths = []
        for position, item in enumerate(level):
            if type(item) is not list:
                raise WrongTensor(_place(position, sizes), f"must be an array of {len(shape) - depth} dimensions")
            lengths.append(len(item))
        size = expected if expected != -1 else (lengths[0] if lengths else 0)
        for position, length in enumerate(lengths):
            if length != size:
                raise WrongTensor(_place(position, sizes), f"must have {size} elements, not {length}")
        sizes.append(size)
        level = list(chain.from_iterable(level))
    return tuple(sizes), level


def _place(position: int, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(position, sizes)) if sizes else ()


def _held(dtype: np.dtype[Any], moment: Any) -> Any:
    """Accept the moments that the unit of a datetime64 holds exactly: of days, no hours."""
    if np.datetime_data(dtype)[0] == "generic":
        return moment
    try:
        held = moment.astype(dtype)
        if held.astype(moment.dtype) == moment:
            return held
    except OverflowError:
        pass
    raise PydanticCustomError("type", f"must be a moment that {dtype} can hold exactly")


def _element(dtype: np.dtype[Any]) -> Form:
    if dtype.kind == "b":
        return form_of(DataType.boolean, Target.COLUMN)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return whole_number(int(limits.min), int(limits.max), dtype.name)
    if dtype.name in ("float16", "float32", "float64"):
        return real_number(dtype.name)
    if dtype.kind in "US":
        return without_final_nul(form_of(DataType.string if dtype.kind == "U" else DataType.binary, Target.COLUMN))
    if dtype.kind == "M":
        moment = form_of(DataType.datetime, Target.NESTED)
        return Form(converted(moment.core, partial(_held, dtype)), moment.json)
    if dtype.kind == "O":
        return form_of(AnyType(), Target.COLUMN)  # type: ignore[no-untyped-call]
    raise SignatureUnsupported(f"A tensor of dtype {dtype} has no JSON form.")
