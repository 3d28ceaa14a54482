"""Rows -> the frame that reaches ``predict``: exactly typed columns over a fresh RangeIndex.

MLflow refuses a column whose dtype is not exactly the signature's (int64 for an integer, float64 for a float), and
cannot hold a missing value in an integer column at all, so nothing is left to pandas' inference here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.types.schema import ColSpec, DataType

_NUMBERS: dict[Any, np.dtype[Any]] = {
    DataType.integer: np.dtype("int32"),
    DataType.long: np.dtype("int64"),
    DataType.float: np.dtype("float32"),
    DataType.double: np.dtype("float64"),
}
_WHOLE = (DataType.integer, DataType.long)


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


def rows_without_whole_number(column: Column, rows: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Yield the positions of the rows that lack a whole number which other rows of the same request bring."""
    if any(row.get(column.key) is not None for row in rows):
        yield from (position for position, row in enumerate(rows) if row.get(column.key) is None)


def frame(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Build the frame of checked rows.

    Args:
        columns: the columns of the signature, in its order.
        rows: one mapping per row, by ``Column.key``; an optional column may be absent.

    Returns:
        A frame with one column for each that any row brings. An optional column that no row brings is absent, as
        are optional whole numbers that are null in every row.
    """
    data: dict[str | int, pd.Series[Any]] = {}
    for column in columns:
        values = [row.get(column.key) for row in rows]
        if _absent(column, values, rows):
            continue
        data[column.name] = _series(column.type, values)
    return pd.DataFrame(data, index=pd.RangeIndex(len(rows)))


def _absent(column: Column, values: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    if column.required or not rows:
        return False
    if column.cannot_be_missing:
        return all(value is None for value in values)
    return not any(column.key in row for row in rows)


def _series(type_: Any, values: list[Any]) -> pd.Series[Any]:
    if isinstance(type_, DataType) and type_ in _NUMBERS:
        return pd.Series(np.array(values, dtype=_NUMBERS[type_]))
    if type_ == DataType.boolean and None not in values:
        return pd.Series(values, dtype="bool")
    if type_ == DataType.datetime:
        return pd.Series(values, dtype="datetime64[ns]")
    return pd.Series(values, dtype="object")
