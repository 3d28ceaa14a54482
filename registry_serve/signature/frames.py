"""Rows -> the frame that reaches ``predict``: exactly typed columns over a fresh RangeIndex.

MLflow refuses a column whose dtype is not exactly the signature's (int64 for an integer, float64 for a float), and
cannot hold a missing value in an integer column at all, so nothing is left to pandas' inference here. Columns of one
dtype are made together, as the one block that pandas would make of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.types.schema import AnyType, ColSpec, DataType

try:
    from pandas.api.internals import create_dataframe_from_blocks  # type: ignore[import-not-found]
except ImportError:  # pandas before 3.0
    create_dataframe_from_blocks = None

_BOOL, _OBJECT = np.dtype("bool"), np.dtype("O")
_DTYPES: dict[Any, np.dtype[Any]] = {
    DataType.integer: np.dtype("int32"),
    DataType.long: np.dtype("int64"),
    DataType.float: np.dtype("float32"),
    DataType.double: np.dtype("float64"),
    DataType.boolean: _BOOL,
    DataType.datetime: np.dtype("datetime64[ns]"),
}
_WHOLE = (DataType.integer, DataType.long)
_NO_MOMENT = np.datetime64("NaT", "ns")
#: With many optional columns there are more layouts than are worth keeping.
MOST_LAYOUTS = 64

#: The dtype of each column that depends on the rows; None where the column is absent.
Varying = tuple[np.dtype[Any] | None, ...]


@dataclass(frozen=True)
class Column:
    """One column of the signature.

    Attributes:
        key: its name in a JSON row, always a string.
        name: its name in the frame, as the signature has it (a string, or an integer).
        type: its MLflow type.
        required: whether every request must bring it.
    """

    key: str
    name: str | int
    type: Any
    required: bool

    @classmethod
    def of(cls, position: int, spec: ColSpec) -> Column:
        """Read a column specification; where an old file does not say whether it is required, it is."""
        name = position if spec.name is None else spec.name
        return cls(key=str(name), name=name, type=spec.type, required=spec.required is not False)

    @property
    def cannot_be_missing(self) -> bool:
        """Whether the column, once there, needs a value in every row."""
        return self.type in _WHOLE

    @property
    def scalar(self) -> bool:
        """Whether its values are plain JSON values rather than arrays or objects."""
        return isinstance(self.type, DataType)

    @property
    def varies(self) -> bool:
        """Whether the rows decide if the column is there, or which dtype it has."""
        return not self.required or self.type == DataType.boolean


def rows_without_whole_number(column: Column, rows: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Yield the positions of the rows that lack a whole number which other rows of the same request bring."""
    if any(row.get(column.key) is not None for row in rows):
        yield from (position for position, row in enumerate(rows) if row.get(column.key) is None)


class _Field(NamedTuple):
    """A column, and where a row has its value: under its key, or at its position."""

    column: Column
    place: Any

    def values(self, rows: Sequence[Any]) -> list[Any]:
        place = self.place
        return [row[place] for row in rows] if self.column.required else [row.get(place) for row in rows]

    def dtype(self, rows: Sequence[Any]) -> np.dtype[Any] | None:
        if not self.column.required and rows and self._absent(rows):
            return None
        dtype = _DTYPES.get(self.column.type, _OBJECT) if self.column.scalar else _OBJECT
        return _OBJECT if dtype == _BOOL and None in self.values(rows) else dtype

    def _absent(self, rows: Sequence[Any]) -> bool:
        if self.column.cannot_be_missing:
            return all(row.get(self.place) is None for row in rows)
        return not any(self.place in row for row in rows)


class _Block(NamedTuple):
    """Columns of one dtype, and where they stand in the frame."""

    dtype: np.dtype[Any]
    fields: Sequence[_Field]
    positions: npt.NDArray[np.intp]

    def array(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        """Return the values, one row of the array for each column."""
        columns = [field.values(rows) for field in self.fields]
        if self.dtype == _OBJECT:
            array = np.empty((len(columns), len(rows)), dtype=_OBJECT)
            for position, values in enumerate(columns):  # all at once, NumPy would look inside values that are lists
                array[position] = values
            return array
        if self.dtype.kind == "M":
            columns = [[_NO_MOMENT if value is None else value.asm8 for value in values] for values in columns]
        return np.array(columns, dtype=self.dtype)


class _Layout(NamedTuple):
    """Which columns a frame has, and of which dtypes."""

    blocks: Sequence[_Block]
    names: pd.Index[Any]


class Frames:
    """The frames of one signature.

    A column is there if any row brings it. An optional column that no row brings is absent, as are optional whole
    numbers that are null in every row.

    Args:
        columns: the columns of the signature, in its order.
        by_position: rows are sequences of values, else mappings by ``Column.key``.
    """

    def __init__(self, columns: Iterable[Column], *, by_position: bool = False) -> None:
        fields = [_Field(column, place if by_position else column.key) for place, column in enumerate(columns)]
        self._fields = list({field.column.name: field for field in fields}.values())
        self._varying = [field for field in self._fields if field.column.varies]
        self._strings = [field for field in self._fields if field.column.type == DataType.string]
        self._layout = lru_cache(MOST_LAYOUTS)(partial(_layout, self._fields))

    def frame(self, rows: Sequence[Any]) -> pd.DataFrame:
        """Build the frame of checked rows."""
        layout = self._layout(self._varying_dtypes(rows))
        blocks = [(block.array(rows), block.positions) for block in layout.blocks]
        # A view, so that a model that renames the index does not rename it for the next request.
        return _assembled(blocks, pd.RangeIndex(len(rows)), layout.names.view())

    def group(self, rows: Sequence[Any]) -> tuple[Any, ...] | None:
        """Return what the frames of rows have in common that can be one frame; None for rows that must stay alone.

        The strings that are missing in the first row count, since MLflow takes the first string of that row to
        decide which column a model with the type hint ``list[str]`` gets.
        """
        if self.inferred:
            return None
        missing = [field.place for field in self._strings if field.values(rows[:1]) == [None]]
        # By name: to NumPy, the dtype of a double equals the None of a column that is not there.
        dtypes = [dtype and dtype.str for dtype in self._varying_dtypes(rows)]
        return (*dtypes, *missing)

    @cached_property
    def nested(self) -> bool:
        """Whether some values are objects that a model could change in place."""
        return not all(field.column.scalar for field in self._fields)

    @cached_property
    def inferred(self) -> bool:
        """Whether MLflow leaves the dtype of a column to what pandas infers from all its values."""
        return any(isinstance(field.column.type, AnyType) for field in self._fields)

    def _varying_dtypes(self, rows: Sequence[Any]) -> Varying:
        return tuple([field.dtype(rows) for field in self._varying]) if self._varying else ()


def _layout(fields: Sequence[_Field], varying: Varying) -> _Layout:
    left = iter(varying)
    present: list[tuple[_Field, np.dtype[Any]]] = []
    for field in fields:
        dtype = next(left) if field.column.varies else field.dtype(())
        if dtype is not None:
            present.append((field, dtype))
    names = pd.DataFrame({field.column.name: [] for field, _ in present}).columns
    positions: dict[np.dtype[Any], list[int]] = {}
    for position, (_, dtype) in enumerate(present):
        positions.setdefault(dtype, []).append(position)
    blocks = [_Block(dtype, [present[at][0] for at in ats], np.array(ats)) for dtype, ats in positions.items()]
    return _Layout(blocks, names)


def _assembled(
    blocks: Sequence[tuple[npt.NDArray[Any], npt.NDArray[np.intp]]], index: pd.Index[Any], names: pd.Index[Any]
) -> pd.DataFrame:
    if create_dataframe_from_blocks is not None and blocks:
        frame: pd.DataFrame = create_dataframe_from_blocks(list(blocks), index=index, columns=names)
        return frame
    arrays = {int(at): values for block, positions in blocks for at, values in zip(positions, block, strict=True)}
    series = {name: pd.Series(arrays[at], dtype=arrays[at].dtype) for at, name in enumerate(names)}
    return pd.DataFrame(series, index=index)
