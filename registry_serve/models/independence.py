"""Does a model answer rows together as it answers each of them alone?

A model may rank its rows, normalise over them, sort its answers, drop duplicates, or read the first row only. Were two
callers' rows to stand in one frame, such a model would answer wrongly, and nobody would notice. So before requests are
merged, the model shows with its own input example that its rows are independent: some different rows alone, then
together, in two orders, one of them twice.

Rows that are answered alike show nothing, so rows are tried until two are answered differently: those of the example,
then variations of its first with other numbers and other strings.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from registry_serve.models import ModelLost
from registry_serve.signature import Request, Schema

_ENOUGH_ROWS, _MOST_ROWS = 3, 10
#: Frameworks compute a batch in another order than a row: the last digits differ.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6


def dependence(schema: Schema, example: Request, predict: Callable[[Request], Any]) -> str | None:
    """Try a model's rows alone and together.

    Args:
        schema: the requests of the version.
        example: its input example, as a request.
        predict: answers a request with plain JSON values.

    Returns:
        None if the rows are independent as far as this can show, else why they are not, or why it is not known.
    """
    if schema.group(example) is None:
        return "requests of this form cannot be merged"
    rows: list[Request] = []
    alone: list[Any] = []
    for row in _different_rows(example):
        try:
            # Merged even where it is one: a copy, since MLflow changes nested values in place.
            alone.append(predict(schema.merge([row])))
        except ModelLost:
            raise
        except Exception:  # noqa: BLE001 - a model may raise anything
            if not rows:
                return "it could not answer its input example"
            continue  # a variation that the model does not take
        rows.append(row)
        if not isinstance(alone[-1], list) or len(alone[-1]) != 1:
            return "it does not answer with one value for each row"
        if len(rows) >= _ENOUGH_ROWS and not all(_alike(answer, alone[0]) for answer in alone):
            break
    if all(_alike(answer, alone[0]) for answer in alone):
        # Rows that are answered alike show nothing: the model may have answered the first one only.
        return "it answers all rows of its input example alike, and variations of them"
    forwards = [*range(len(rows)), 0]
    for order in (forwards, forwards[::-1][1:]):
        try:
            together = predict(schema.merge([rows[place] for place in order]))
        except ModelLost:
            raise
        except Exception:  # noqa: BLE001
            return "it raised on rows together that it answered alone"
        if not isinstance(together, list) or len(together) != len(order):
            return "it does not answer with one value for each row"
        if not all(_alike(answer, alone[place][0]) for place, answer in zip(order, together, strict=True)):
            return "it answers rows together otherwise than alone"
    return None


def _different_rows(example: Request) -> Iterator[Request]:
    """Give different rows of an example, each as a request, and then variations of its first one."""
    rows = _rows(example)
    given: list[Any] = []
    for row in [*rows, *_variations(rows[0])]:
        if len(given) < _MOST_ROWS and not any(_alike(row, other) for other in given):
            given.append(row)
            yield Request([row], example.params, 1)


def _variations(row: Any) -> Iterator[Any]:
    """Vary a row in several ways: text classifiers, for one, answer a sentence said twice as they answer it once."""
    return (_varied(row, way) for way in range(3))


def _rows(example: Request) -> Sequence[Any]:
    first = example.rows[0]
    if isinstance(first, np.ndarray):
        return [first[place : place + 1] for place in range(min(example.count, _MOST_ROWS))]
    if isinstance(first, Mapping) and all(isinstance(value, np.ndarray) for value in first.values()):
        return [
            {name: tensor[place : place + 1] for name, tensor in first.items()}
            for place in range(min(example.count, _MOST_ROWS))
        ]
    return example.rows


def _varied(value: Any, way: int) -> Any:
    """Return another value of the same type, within the type's range; ``way`` is 0, 1 or 2."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value - 1 - way if value > way else value + 1 + way
    if isinstance(value, float):
        return value * (-2) ** (way + 1) + 1 + way
    if isinstance(value, str):
        return (value[: len(value) // 2], f"{value} {value}", value[::-1])[way]
    if isinstance(value, dt.datetime):
        return value - dt.timedelta(days=1 + way)
    if isinstance(value, Mapping):
        return {key: _varied(item, way) for key, item in value.items()}
    if isinstance(value, list):
        return [_varied(item, way) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return (value // 2 + 1 + way).astype(value.dtype)
    return value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)
