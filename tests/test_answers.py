"""Predictions of every shape and kind -> plain JSON values."""

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.types.schema import Array, ColSpec, Schema, TensorSpec
from pydantic import BaseModel
from scipy import sparse

from registry_serve.signature import answer, declared_answer_json, mismatch

TEXT = Schema([ColSpec("string", "y")])
ARRAYS = Schema([ColSpec(Array("string"), "y")])


@pytest.mark.parametrize(
    ("prediction", "count", "outputs", "expected"),
    [
        (pd.DataFrame({"y": [1, 2], "z": ["a", None]}), 2, None, [{"y": 1, "z": "a"}, {"y": 2, "z": None}]),
        (pd.DataFrame({0: [1.5]}), 1, None, [{"0": 1.5}]),
        (pd.DataFrame({"y": [1, 2, 3]}), 1, None, [{"y": 1}, {"y": 2}, {"y": 3}]),
        (pd.DataFrame(index=range(2)), 2, None, [{}, {}]),
        ([{"y": "a"}, {"y": "b"}], 2, TEXT, [{"y": "a"}, {"y": "b"}]),
        ({"y": ["a", "b"]}, 2, TEXT, [{"y": "a"}, {"y": "b"}]),
        ({"y": np.array(["a"]), "z": [1]}, 1, TEXT, [{"y": "a", "z": 1}]),
        ({"y": ["a", "b"]}, 1, TEXT, {"y": ["a", "b"]}),
        ({"y": ["a", "b"]}, 2, ARRAYS, {"y": ["a", "b"]}),
        ({"y": ["a", "b"]}, 2, None, {"y": ["a", "b"]}),
        ({"y": "a"}, 1, TEXT, {"y": "a"}),
        ({"y": np.array([1.0])}, 1, Schema([TensorSpec(np.dtype("float64"), (-1,), "y")]), {"y": [1.0]}),
        (pd.Series([1, 2], name="y"), 2, None, [1, 2]),
        (np.array([[1.5, 2.5]]), 1, None, [[1.5, 2.5]]),
        (["a", "b"], 2, None, ["a", "b"]),
        ("a", 1, None, "a"),
        (None, 1, None, None),
        (np.float64(2.5), 1, None, 2.5),
    ],
)
def test_the_prediction_decides_the_shape(prediction, count, outputs, expected):
    assert answer(prediction, count, outputs) == expected


class Color(enum.Enum):
    RED = "red"


class Tone(str, enum.Enum):
    LOUD = "loud"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: float
    when: dt.date


class Item(BaseModel):
    name: str
    score: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float32("nan"), None),
        (np.array([1.0, np.nan, -np.inf]), [1.0, None, None]),
        (np.array([[np.nan], [2.0]], "float32"), [[None], [2.0]]),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array("a"), "a"),
        (np.array(5), 5),
        (2**70, 2**70),
        (pd.NaT, None),
        (pd.NA, None),
        (np.datetime64("NaT"), None),
        (pd.Timedelta("NaT"), None),
        (pd.Timestamp("2024-05-01T10:00:00.123456789"), "2024-05-01T10:00:00.123456789"),
        (pd.Timestamp("2024-05-01", tz="Europe/Berlin"), "2024-05-01T00:00:00+02:00"),
        (dt.datetime(2024, 5, 1, 10), "2024-05-01T10:00:00"),
        (dt.date(2024, 5, 1), "2024-05-01"),
        (dt.time(10, 30), "10:30:00"),
        (np.array(["2024-05-01", "NaT"], "datetime64[ns]"), ["2024-05-01T00:00:00", None]),
        (dt.timedelta(hours=1), "P0DT1H0M0S"),
        (b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
        (b"x" * 100, base64.b64encode(b"x" * 100).decode()),
        (bytearray(b"a"), "YQ=="),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Color.RED, "red"),
        (Tone.LOUD, "loud"),
        (Level.LOW, 1),
        ({Tone.LOUD: 1, Color.RED: Level.LOW}, {"loud": 1, "red": 1}),
        (np.array([1.5, np.nan], np.longdouble), [1.5, None]),
        ((1, 2), [1, 2]),
        ({"a"}, ["a"]),
        ({np.int64(1): "a", ("b", 2): None}, {"1": "a", "('b', 2)": None}),
        (pd.Series([1, None], dtype="Int64"), [1, None]),
        (pd.Series([True, None], dtype="boolean"), [True, None]),
        (pd.Series(["a", None], dtype="str"), ["a", None]),
        (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
        (pd.Index([1, 2]), [1, 2]),
        (pd.Series(pd.to_datetime(["2024-05-01", None])), ["2024-05-01T00:00:00", None]),
        (torch.tensor([[1.0, 2.0]]), [[1.0, 2.0]]),
        (sparse.csr_matrix([[0, 1]]), [[0, 1]]),
        (Point(1.0, dt.date(2024, 5, 1)), {"x": 1.0, "when": "2024-05-01"}),
        (Item(name="a", score=float("nan")), {"name": "a", "score": None}),
        ([pd.DataFrame({"y": [1]})], [[{"y": 1}]]),
        (np.array([{"a": np.float32(0.5)}, None], dtype=object), [{"a": 0.5}, None]),
    ],
)
def test_every_kind_of_value_has_a_json_form(value, expected):
    answered = answer([value], 5, None)
    assert answered == [expected]
    json.dumps(answered, allow_nan=False)


def test_a_frame_of_every_dtype_is_answered_by_column():
    frame = pd.DataFrame(
        {
            "whole": pd.Series([1, 2], dtype="Int32"),
            "real": [1.5, np.nan],
            "when": pd.to_datetime(["2024-05-01", None]),
            "text": ["a", None],
            "bytes": [b"a", None],
            "list": [[1, np.nan], np.array([2])],
        }
    )
    assert answer(frame, 2, None) == [
        {"whole": 1, "real": 1.5, "when": "2024-05-01T00:00:00", "text": "a", "bytes": "YQ==", "list": [1, None]},
        {"whole": 2, "real": None, "when": None, "text": None, "bytes": None, "list": [2]},
    ]


@pytest.mark.parametrize("value", [3 + 4j, object(), lambda: None, {"a": [object()]}, np.array([1j])])
def test_what_has_no_json_form_is_said(value):
    with pytest.raises(TypeError, match="no JSON form"):
        answer([value], 1, None)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "columns"),
        (pd.DataFrame([[1, 2]], columns=[0, "0"]), "columns"),
        ({1: "a", "1": "b"}, "keys"),
        ({Color.RED: 1, "red": 2}, "keys"),
        ([{"a": [{1: "a", "1": "b"}]}], "keys"),
    ],
)
def test_two_names_that_are_one_in_json_are_refused(value, what):
    with pytest.raises(TypeError, match=f"two {what} are called .*no JSON form"):
        answer(value, 1, None)


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        ([{"y": "a"}], None),
        ([], None),
        ([{"y": "a", "z": 1}], "undeclared z"),
        ([{"z": "a"}], "missing y; undeclared z"),
        ({"y": ["a"]}, None),
        (["a"], "declared named outputs, answered without names"),
    ],
)
def test_a_mismatch_with_the_declared_outputs_is_described(answered, said):
    assert mismatch(answered, TEXT) == said
    assert mismatch(answered, None) is None


def test_declared_outputs_are_documented():
    columns = Schema([ColSpec("long", "y"), ColSpec("string", "why", required=False)])
    assert declared_answer_json(columns)["items"]["required"] == ["y"]
    assert declared_answer_json(None) == {}
    tensor = declared_answer_json(Schema([TensorSpec(np.dtype("float32"), (-1, 2))]))
    assert tensor["items"] == {"type": "array", "items": {"type": ["number", "null"], "format": "float"}} | {
        "minItems": 2,
        "maxItems": 2,
    }
    assert declared_answer_json(Schema([ColSpec("string")])) == {"type": "array", "items": {"type": "string"}}
