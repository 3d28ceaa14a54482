"""The shapes that a model's inputs take in JSON, one class for each kind of signature.

| inputs of the signature                                  | class           | a row is              | bare body |
|----------------------------------------------------------|-----------------|-----------------------|-----------|
| named columns                                            | NamedColumns    | an object             | yes       |
| one unnamed scalar column                                | UnnamedColumn   | the value             | yes       |
| several unnamed columns                                  | UnnamedColumns  | an array, by position | yes       |
| one unnamed Array, Map, Object, Any; a list[T] type hint | Values          | the value             | no        |
| tensors                                                  | Tensors         | the whole batch       | no        |
| none                                                     | NoInputs        | nothing               | no        |

A bare body is the rows themselves; the others come only in the envelope ``{"inputs": ...}``. The signature alone
decides the form, so that one bad value gives one message at its place.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from mlflow.models import ModelSignature

from registry_serve.errors import InvalidRequest
from registry_serve.signature.frames import Column
from registry_serve.signature.rows import NamedColumns, Place, UnnamedColumn, UnnamedColumns, Values, fault, located
from registry_serve.signature.tensors import Tensor, WrongTensor


class Inputs(Protocol):
    """How the inputs of one signature are written in JSON, checked, and handed to ``predict``."""

    #: Whether a body may be the rows alone, without the envelope.
    bare: ClassVar[bool]

    @property
    def column_names(self) -> Sequence[str]:
        """Names that a row's object may have as keys; they decide what the envelope's keys are called."""

    @property
    def row_json(self) -> dict[str, Any]:
        """The JSON Schema of one row (of the whole batch, for tensors)."""

    def json(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of the rows, given the schema (or a reference to it) of one row."""

    def rows(self, value: Any, place: Place) -> list[Any]:
        """Check a decoded JSON value and return its rows.

        Raises:
            InvalidRequest: with all faults, each at its place below ``place``.
        """

    def data(self, rows: list[Any]) -> Any:
        """Return what ``predict`` gets: a frame, an array, a dict of arrays, a list, or None."""

    def group(self, rows: list[Any]) -> Hashable | None:
        """Return a key of checked rows, at least one.

        Rows with equal keys may stand in one call of ``predict`` and reach the model there as they do alone; rows
        whose key is None may not.
        """

    def merge(self, parts: Sequence[list[Any]]) -> list[Any]:
        """Return the rows of several requests, of equal keys, as those of one.

        What a model could change in place is copied: if the call fails, the requests can still be asked alone.
        """


def inputs_of(signature: ModelSignature, *, from_type_hint: bool) -> Inputs:
    """Choose the form for a signature.

    Args:
        signature: the model's signature.
        from_type_hint: whether MLflow made it from the type hint of ``predict`` (the model then gets a list).

    Raises:
        SignatureUnsupported: a type without a JSON form.
    """
    schema = signature.inputs
    if schema is None:
        return NoInputs()
    if schema.is_tensor_spec():
        return Tensors(tuple(Tensor.of(spec) for spec in schema.inputs))
    columns = tuple(Column.of(position, spec) for position, spec in enumerate(schema.inputs))
    if schema.has_input_names():
        return NamedColumns(columns)
    if len(columns) > 1:
        return UnnamedColumns(columns)
    if from_type_hint or not columns[0].scalar:
        return Values(columns[0], from_type_hint)
    return UnnamedColumn(columns[0])


@dataclass(frozen=True)
class Tensors:
    """One unnamed tensor, or an object of named ones. The rows are the whole batch, counted by the first dimension."""

    tensors: tuple[Tensor, ...]

    bare: ClassVar[bool] = False
    column_names: ClassVar[Sequence[str]] = ()

    @property
    def row_json(self) -> dict[str, Any]:
        if self.tensors[0].name is None:
            return self.tensors[0].json
        names = [str(tensor.name) for tensor in self.tensors]
        return {
            "type": "object",
            "properties": {str(tensor.name): tensor.json for tensor in self.tensors},
            "required": names,
            "additionalProperties": False,
        }

    def json(self, row: dict[str, Any]) -> dict[str, Any]:
        return row

    def rows(self, value: Any, place: Place) -> list[Any]:
        if self.tensors[0].name is None:
            return [self._array(self.tensors[0], value, place)]
        if not isinstance(value, dict):
            raise fault(place, "must be an object with one array for each tensor")
        names = [str(tensor.name) for tensor in self.tensors]
        faults = [located((*place, name), "is required") for name in names if name not in value]
        unknown = (name for name in value if name not in names)
        message = "is not in the model's signature"
        faults += [located((*place, name), message) for name in islice(unknown, InvalidRequest.MOST_ERRORS)]
        if faults:
            raise InvalidRequest(faults, sum(1 for _ in unknown))
        return [
            {
                tensor.name: self._array(tensor, value[str(tensor.name)], (*place, str(tensor.name)))
                for tensor in self.tensors
            }
        ]

    @staticmethod
    def _array(tensor: Tensor, value: Any, place: Place) -> Any:
        try:
            return tensor.array(value)
        except WrongTensor as error:
            raise fault((*place, *error.location), error.message) from None

    def data(self, rows: list[Any]) -> Any:
        return rows[0]

    def group(self, rows: list[Any]) -> Hashable | None:
        if any(tensor.shape[:1] != (-1,) for tensor in self.tensors):
            return None
        arrays = self._arrays(rows)
        if any(len(array) != len(arrays[0]) for array in arrays):
            return None
        return tuple([(array.dtype, array.shape[1:]) for array in arrays])

    def merge(self, parts: Sequence[list[Any]]) -> list[Any]:
        merged = [np.concatenate(arrays) for arrays in zip(*map(self._arrays, parts), strict=True)]
        merged = [deepcopy(array) if array.dtype.hasobject else array for array in merged]
        if self.tensors[0].name is None:
            return merged
        return [{tensor.name: array for tensor, array in zip(self.tensors, merged, strict=True)}]

    def _arrays(self, rows: list[Any]) -> list[npt.NDArray[Any]]:
        return rows if self.tensors[0].name is None else list(rows[0].values())


class NoInputs:
    """The signature has params only."""

    bare: ClassVar[bool] = False
    column_names: ClassVar[Sequence[str]] = ()
    row_json: ClassVar[dict[str, Any]] = {}

    def json(self, row: dict[str, Any]) -> dict[str, Any]:
        return row

    def rows(self, value: Any, place: Place) -> list[Any]:
        raise fault(place, "is not in the model's signature, which has params only")

    def data(self, rows: list[Any]) -> Any:
        return None

    def group(self, rows: list[Any]) -> Hashable | None:
        return None

    def merge(self, parts: Sequence[list[Any]]) -> list[Any]:
        return []
