"""How each server wants its rows, and how it wraps its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Workload:
    """One model with rows to ask it.

    Attributes:
        model: its name in the registry.
        rows: makes N rows, always the same.
        answers: what a server must answer to them.
    """

    model: str
    rows: Callable[[int], Rows]
    answers: Callable[[int], list[Any]]


_IRIS_ROWS = [(5.1, 3.5, 1.4, 0.2), (6.9, 3.1, 5.4, 2.1)]
_IRIS_COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")

TEXT = Workload(
    "text",
    lambda count: [{"prompt": f"The weather is lovely today, {number}"} for number in range(count)],
    lambda count: [{"text": f"en: The weather is lovely today, {number}"} for number in range(count)],
)
IRIS = Workload(
    "iris",
    lambda count: [dict(zip(_IRIS_COLUMNS, _IRIS_ROWS[number % 2], strict=True)) for number in range(count)],
    lambda count: [number % 2 * 2 for number in range(count)],
)
WORKLOADS = {workload.model: workload for workload in (TEXT, IRIS)}


@dataclass(frozen=True)
class Dialect:
    """A request to predict.

    Attributes:
        path: where it goes, for a model.
        body: its content, for rows.
        answers: the predictions in an answer's content.
    """

    path: Callable[[str], str]
    body: Callable[[Rows], Any]
    answers: Callable[[Any], list[Any]]

    def encode(self, rows: Rows) -> bytes:
        """Return the body of a request."""
        return json.dumps(self.body(rows)).encode()

    def decode(self, content: bytes) -> list[Any]:
        """Return the predictions, one per row."""
        return self.answers(json.loads(content))


def _tensors(rows: Rows) -> dict[str, Any]:
    """Return rows as an Open Inference Protocol request: one tensor for each column."""
    inputs = [
        {
            "name": name,
            "shape": [len(rows), 1],
            "datatype": "BYTES" if isinstance(value, str) else "FP64",
            "data": [row[name] for row in rows],
        }
        for name, value in rows[0].items()
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


NATIVE = Dialect(lambda _: "/serve", lambda rows: rows[0] if len(rows) == 1 else rows, lambda answer: list(answer))
INVOCATIONS = Dialect(
    lambda _: "/invocations", lambda rows: {"dataframe_records": rows}, lambda answer: list(answer["predictions"])
)
OPEN_INFERENCE = Dialect(
    lambda model: f"/v2/models/{model}/infer", _tensors, lambda answer: list(answer["outputs"][0]["data"])
)
ROWS = Dialect(lambda _: "/predict", lambda rows: {"rows": rows}, lambda answer: list(answer))
