"""What Python's ``predict`` accepts and answers, JSON accepts and answers; nothing is changed on the way.

The oracle is MLflow itself: a pyfunc that keeps what reaches it and answers with it is called once with the frame that
a Python user would build, and with what the endpoint makes of the same values in JSON, by MLflow's way and by ours.
"""

import base64
import datetime as dt
import json
import math
import tracemalloc

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types.schema import (
    AnyType,
    Array,
    ColSpec,
    DataType,
    Map,
    Object,
    ParamSchema,
    ParamSpec,
    Property,
    Schema,
    TensorSpec,
)
from pydantic_core import from_json, to_json

from registry_serve.errors import InvalidRequest, MalformedJSON
from registry_serve.models.direct import shortest_way
from registry_serve.signature import RequestSchema, answer
from registry_serve.signature.answers import plain
from tests.signatures import assert_identical

SEEN = {}
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Echo(mlflow.pyfunc.PythonModel):
    """Keeps what reaches it, and answers with it."""

    def predict(self, context, model_input, params=None):
        SEEN["input"], SEEN["params"] = model_input, params
        return model_input


class Endpoint:
    """A model beside the schema that the endpoint makes of its signature."""

    def __init__(self, path, signature):
        mlflow.pyfunc.save_model(path, python_model=Echo(), signature=signature, pip_requirements=[])
        self.model = mlflow.pyfunc.load_model(str(path))
        self.schema = RequestSchema(self.model.metadata.signature)

    def from_python(self, data, params=None):
        self.model.predict(data, params=params)
        return SEEN["input"]

    def from_json(self, body):
        request = self.schema.parse(json.dumps(body).encode())
        once = self.schema.merge([request])  # MLflow changes objects in place, and then refuses them
        self.model.predict(self.schema.inputs.data(once.rows), params=once.params)
        by_mlflow = list(SEEN.values())
        prediction = shortest_way(self.model)(self.schema.inputs.data(request.rows), request.params)
        assert_identical(list(SEEN.values()), by_mlflow)
        return SEEN["input"], from_json(to_json(answer(prediction, request.count, None)), allow_inf_nan=False)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    kept = {}

    def make(*inputs, params=None):
        signature = ModelSignature(inputs=Schema(list(inputs)) if inputs else None, params=params)
        name = repr((inputs, params))
        if name not in kept:
            kept[name] = Endpoint(tmp_path_factory.mktemp("model") / "m", signature)
        return kept[name]

    return make


def ints(bits):
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
moments = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
doubles = st.floats(allow_nan=True, allow_infinity=False)
singles = st.floats(allow_nan=True, allow_infinity=False, width=32)

# type -> (values a Python user has, the dtype they put them in, the value in JSON, whether None may be among them)
COLUMNS = {
    "boolean": (st.booleans(), bool, lambda v: v, True),
    "integer": (ints(32), "int32", lambda v: v, False),
    "long": (ints(64), "int64", lambda v: v, False),
    "float": (singles, "float32", lambda v: None if math.isnan(v) else v, False),
    "double": (doubles, "float64", lambda v: None if math.isnan(v) else v, False),
    "string": (text, object, lambda v: v, True),
    "binary": (st.binary(max_size=8), object, lambda v: base64.b64encode(v).decode(), True),
    "datetime": (moments, "datetime64[ns]", lambda v: v.isoformat(), True),
}


def frame_of(name, values):
    dtype = COLUMNS[name][1]
    if name == "boolean" and None in values:
        dtype = object
    return pd.DataFrame({"x": pd.Series(values, dtype=dtype)})


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("name", COLUMNS)
@QUICK
@given(data=st.data())
def test_a_column_reaches_the_model_as_from_python(endpoint, name, required, data):
    values, _, to_json, nullable = COLUMNS[name]
    if nullable:
        values = st.none() | values
    column = data.draw(st.lists(values, min_size=1, max_size=5))
    served = endpoint(ColSpec(name, "x", required=required))
    expected = served.from_python(frame_of(name, column))
    seen, answered = served.from_json([{"x": None if value is None else to_json(value)} for value in column])
    pd.testing.assert_frame_equal(seen, expected, check_exact=True)
    assert answered == answer(expected, len(column), None)


JSON_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**31, -(2**31) - 1, 2**63, 2**53 + 1, 2**24 + 1, 1.7, 3.0, 1e300, 1e-300, 3.5e38, 0.1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["5", "1.5", "true", "false", "", "YWJj", "2024-02-30", "1700000000", "not base64!"])
    | st.text(max_size=4)
    | st.sampled_from([[1], {"a": 1}, []])
)


def is_kept(name, sent, arrived):
    """Whether the value that arrived is the one that was sent."""
    if sent is None:
        return bool(pd.isna(arrived))
    if name in ("integer", "long"):
        return type(sent) in (int, float) and sent == int(arrived)
    if name in ("float", "double"):
        exact = float(sent) if type(sent) is float else sent
        narrowed = float(np.float32(exact)) if name == "float" and type(sent) is float else exact
        return type(sent) in (int, float) and float(arrived) == narrowed and math.isfinite(arrived)
    if name == "boolean":
        return type(sent) is bool and bool(arrived) is sent
    if name == "string":
        return type(sent) is str and arrived == sent
    if name == "binary":
        return type(sent) is str and base64.b64encode(arrived).decode() == sent
    return type(sent) is str and pd.Timestamp(sent) == arrived


@pytest.mark.parametrize("name", COLUMNS)
@QUICK
@given(sent=JSON_SCALARS)
def test_a_value_is_kept_or_refused_and_never_changed(endpoint, name, sent):
    served = endpoint(ColSpec(name, "x"))
    try:
        seen, _ = served.from_json({"x": sent})
    except InvalidRequest:
        return
    assert is_kept(name, sent, seen["x"].iloc[0])


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("boolean", [0, 1, "true", "false", "", 1.0]),
        ("integer", [1.7, 2**31, -(2**31) - 1, "5", True, None, 1e300]),
        ("long", [1.7, 2**63, "5", False, None, 1e19]),
        ("float", ["1.5", True, 1e39, -1e39, 2**24 + 1, 1e-60]),
        ("double", ["1.5", False, 2**53 + 1, 10**400]),
        ("string", [5, 1.5, True, ["a"], {"a": 1}]),
        ("binary", ["YWJ", "é", 5]),
        (
            "datetime",
            [1700000000, "1700000000", "2024-02-30", "yesterday", "1500-01-01", "2024-01-01T00:00:00.1234567890"],
        ),
    ],
)
def test_values_of_another_type_or_out_of_range_are_refused(endpoint, name, refused):
    served = endpoint(ColSpec(name, "x"))
    for value in refused:
        with pytest.raises(InvalidRequest) as caught:
            served.from_json([{"x": value}])
        assert caught.value.errors[0]["location"] == [0, "x"]


@pytest.mark.parametrize(
    ("name", "sent", "kept"),
    [("long", 3.0, 3), ("integer", -3.0, -3), ("double", 5, 5.0), ("float", 5, 5.0), ("double", 2**60, 2.0**60)],
)
def test_numbers_are_cast_where_nothing_is_lost(endpoint, name, sent, kept):
    seen, answered = endpoint(ColSpec(name, "x")).from_json({"x": sent})
    assert seen["x"].iloc[0] == kept
    assert answered == [{"x": kept}]


def test_moments_are_converted_to_utc_and_keep_nanoseconds(endpoint):
    served = endpoint(ColSpec("datetime", "x"))
    seen, answered = served.from_json([{"x": "2024-05-01T12:00:00.123456789+02:00"}, {"x": "2024-05-01"}])
    assert seen["x"].tolist() == [pd.Timestamp("2024-05-01T10:00:00.123456789"), pd.Timestamp("2024-05-01")]
    assert answered == [{"x": "2024-05-01T10:00:00.123456789"}, {"x": "2024-05-01T00:00:00"}]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_literals_that_are_no_json_are_refused(endpoint, literal):
    for type_ in ("double", AnyType()):
        with pytest.raises(MalformedJSON):
            endpoint(ColSpec(type_, "x")).schema.parse(f'{{"x": {literal}}}'.encode())


def test_a_number_beyond_float64_is_refused_even_where_anything_goes(endpoint):
    for body in (b'{"x": 1e999}', b'{"x": {"y": [1e999]}}'):
        with pytest.raises(InvalidRequest):
            endpoint(ColSpec(AnyType(), "x")).schema.parse(body)


# --- nested values ---------------------------------------------------------------------------------------------------

# type -> (leaf as a Python user must write it for MLflow, its JSON)
LEAVES = {
    "boolean": (st.booleans(), lambda v: v),
    "integer": (ints(32).map(np.int32), int),
    "long": (ints(64), int),
    "float": (singles.map(np.float32), lambda v: None if np.isnan(v) else float(v)),
    "double": (doubles, lambda v: None if math.isnan(v) else v),
    "string": (text | text.map(lambda t: t + "\0"), lambda v: v),
    "binary": (st.binary(max_size=4), lambda v: base64.b64encode(v).decode()),
    "datetime": (moments.map(lambda v: np.datetime64(v, "ns")), lambda v: pd.Timestamp(v).isoformat()),
}


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (pd.isna(one) and pd.isna(other)))


def is_cut(leaf):
    """Whether NumPy's arrays of strings and bytes lose the end of it."""
    return isinstance(leaf, (str, bytes)) and leaf[-1:] in ("\0", b"\0")


@pytest.mark.parametrize("name", LEAVES)
@QUICK
@given(data=st.data())
def test_nested_values_reach_the_model_as_from_python(endpoint, name, data):
    leaf, to_json = LEAVES[name]
    kind = DataType[name]
    served = endpoint(
        ColSpec(Array(kind), "array"),
        ColSpec(Array(Array(kind)), "deep"),
        ColSpec(Map(kind), "map"),
        ColSpec(Object([Property("a", kind), Property("b", Array(kind), required=False)]), "object"),
    )
    flat, deep = data.draw(st.lists(leaf, max_size=3)), data.draw(st.lists(st.lists(leaf, max_size=2), max_size=2))
    mapped, one = data.draw(st.dictionaries(text, leaf, max_size=2)), data.draw(leaf)
    python = {"array": flat, "deep": deep, "map": mapped, "object": {"a": one, "b": list(flat)}}
    body = {
        "array": [to_json(v) for v in flat],
        "deep": [[to_json(v) for v in inner] for inner in deep],
        "map": {key: to_json(v) for key, v in mapped.items()},
        "object": {"a": to_json(one), "b": [to_json(v) for v in flat]},
    }
    if any(map(is_cut, [*flat, *(leaf for inner in deep for leaf in inner)])):
        with pytest.raises(InvalidRequest) as caught:
            served.from_json(body)
        assert all(error["message"] == "must not end in a NUL character" for error in caught.value.errors)
        return
    expected = served.from_python(
        pd.DataFrame({key: pd.Series([value], dtype=object) for key, value in python.items()})
    )
    expected = {key: expected[key].iloc[0] for key in expected}
    seen, answered = served.from_json(body)
    for key in expected:
        assert same(seen[key].iloc[0], expected[key]), key
    assert answered == [plain(expected)]


@pytest.mark.parametrize(
    ("type_", "value", "location"),
    [
        (Array("string"), ["hello", None], [0, "x", 1]),
        (Array("boolean"), [True, None], [0, "x", 1]),
        (Array("long"), [1, 2.5], [0, "x", 1]),
        (Array("integer"), [2**31], [0, "x", 0]),
        (Array(Array("long")), [[1], ["2"]], [0, "x", 1, 0]),
        (Array("long"), None, [0, "x"]),
        (Array("long"), {"a": 1}, [0, "x"]),
        (Map("long"), {"k": "v"}, [0, "x", "*"]),
        (Map(Array("long")), {"k": [1, "v"]}, [0, "x", "*", 1]),
        (Map("long"), {1: 1}, [0, "x"]),
        (Map("long"), [1], [0, "x"]),
        (Object([Property("a", DataType.long)]), {"a": 1, "b": 2}, [0, "x", "b"]),
        (Object([Property("a", DataType.long)]), {}, [0, "x", "a"]),
        (Object([Property("a", DataType.string)]), {"a": None}, [0, "x", "a"]),
    ],
)
def test_nested_values_that_do_not_fit_are_named_at_their_place(endpoint, type_, value, location):
    with pytest.raises(InvalidRequest) as caught:
        endpoint(ColSpec(type_, "x")).schema.check([{"x": value}])
    assert caught.value.errors[0]["location"] == location


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (Array("string"), [None, [], ["a"]]),
        (Map("long"), [None, {}, {"a": 1}]),
        (Object([Property("a", DataType.long, required=False)]), [None, {}, {"a": None}, {"a": 1}]),
        (Array(Array("long")), [None, [None, [1]]]),
    ],
)
def test_optional_nested_columns_may_be_null(endpoint, type_, values):
    served = endpoint(ColSpec(type_, "x", required=False), ColSpec("long", "n"))
    for value in values:
        expected = served.from_python(
            pd.DataFrame({"x": pd.Series([json.loads(json.dumps(value))], dtype=object), "n": [1]})
        )
        seen, _ = served.from_json({"x": value, "n": 1})
        assert same(seen["x"].iloc[0], expected["x"].iloc[0])


@QUICK
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | doubles.filter(math.isfinite) | text, st.lists))
def test_any_value_passes_where_anything_goes(endpoint, value):
    served = endpoint(ColSpec(AnyType(), "x"), ColSpec(Array(AnyType()), "list"), ColSpec(Map(AnyType()), "map"))
    seen, answered = served.from_json({"x": value, "list": [value], "map": {"k": value}})
    assert seen["x"].iloc[0] == value
    assert answered == [{"x": value, "list": [value], "map": {"k": value}}]


# --- tensors ---------------------------------------------------------------------------------------------------------

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("dtype", DTYPES)
@QUICK
@given(data=st.data())
def test_a_tensor_reaches_the_model_as_from_python(endpoint, dtype, data):
    kind = np.dtype(dtype)
    if kind.kind == "f":
        element = st.floats(width=kind.itemsize * 8, allow_infinity=False)
    else:
        element = st.booleans() if kind.kind == "b" else st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    rows = data.draw(st.lists(st.lists(element, min_size=2, max_size=2), min_size=1, max_size=3))
    array = np.array(rows, dtype=kind)
    served = endpoint(TensorSpec(kind, (-1, 2)))
    expected = served.from_python(array)
    seen, answered = served.from_json({"inputs": plain(array)})
    assert seen.dtype == expected.dtype == kind
    np.testing.assert_array_equal(seen, expected)
    assert answered == plain(expected)


@pytest.mark.parametrize(
    ("dtype", "kept", "refused"),
    [
        ("datetime64[D]", "2024-05-01", "2024-05-01T12:30:00"),
        ("datetime64[s]", "2024-05-01T12:30:01", "2024-05-01T12:30:00.5"),
        ("datetime64[ns]", "2024-05-01T12:30:01.000000001", "2024-05-01T12:30:01.0000000001"),
        ("datetime64[ps]", "1970-01-02T00:00:01", "2024-05-01"),
        ("str", "a\0b", "a\0"),
        ("bytes", "AGE=", "YQA="),
        ("object", [1.5, {"a": None}], [1.5, {"a": float("inf")}]),
    ],
)
def test_a_tensor_keeps_its_elements_or_refuses_them(endpoint, dtype, kept, refused):
    served = endpoint(TensorSpec(np.dtype(dtype), (-1,)))
    rows = served.schema.check({"inputs": [kept, kept]}).rows
    said = base64.b64decode(kept) if dtype == "bytes" else kept
    assert all(item == (np.datetime64(said).astype(dtype) if dtype.startswith("date") else said) for item in rows[0])
    with pytest.raises(InvalidRequest) as caught:
        served.schema.check({"inputs": [kept, refused]})
    assert caught.value.errors[0]["location"] == ["inputs", 1]


def test_named_tensors_come_by_name(endpoint):
    served = endpoint(TensorSpec(np.dtype("float32"), (-1, 2), "a"), TensorSpec(np.dtype("O"), (-1,), "b"))
    seen, answered = served.from_json({"inputs": {"a": [[1, 2]], "b": ["x"]}})
    assert seen["a"].dtype == np.float32
    assert answered == {"a": [[1.0, 2.0]], "b": ["x"]}


@pytest.mark.parametrize(
    ("value", "location"),
    [
        ([[1, 2], [3]], ["inputs", 1]),
        ([[1, 2], [3, "x"]], ["inputs", 1, 1]),
        ([1, 2], ["inputs", 0]),
        ([[1, 2], [3, 2**31]], ["inputs", 1, 1]),
        ("x", ["inputs"]),
        ([[[1], [2]]], ["inputs", 0, 0]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_at_its_place(endpoint, value, location):
    with pytest.raises(InvalidRequest) as caught:
        endpoint(TensorSpec(np.dtype("int32"), (-1, 2))).from_json({"inputs": value})
    assert caught.value.errors[0]["location"] == location


def test_a_ragged_tensor_passes_where_an_inner_dimension_is_free(endpoint):
    served = endpoint(TensorSpec(np.dtype("float64"), (-1, -1)))
    ragged = np.empty(2, dtype=object)
    ragged[0], ragged[1] = np.array([1.0, 2.0]), np.array([3.0])
    expected = served.from_python(ragged)
    seen, answered = served.from_json({"inputs": [[1, 2], [3]]})
    assert [item.tolist() for item in seen] == [item.tolist() for item in expected]
    assert answered == [[1.0, 2.0], [3.0]]


def test_an_empty_batch_passes_as_from_python(endpoint):
    served = endpoint(TensorSpec(np.dtype("float64"), (-1, 2)))
    assert served.from_json({"inputs": []})[0].shape == served.from_python(np.empty((0, 2))).shape == (0, 2)
    columns = endpoint(ColSpec("long", "x"), ColSpec("string", "y"))
    expected = columns.from_python(pd.DataFrame({"x": np.array([], "int64"), "y": np.array([], object)}))
    pd.testing.assert_frame_equal(columns.from_json([])[0], expected)


# --- params ----------------------------------------------------------------------------------------------------------

PARAMS = {
    "boolean": (st.booleans(), lambda v: v),
    "integer": (ints(32), lambda v: v),
    "long": (ints(64), lambda v: v),
    "float": (doubles.filter(math.isfinite), lambda v: v),
    "double": (doubles.filter(math.isfinite), lambda v: v),
    "string": (text, lambda v: v),
    "datetime": (moments, lambda v: v.isoformat()),
}
DEFAULTS = {
    "boolean": True,
    "integer": 1,
    "long": 1,
    "float": 1.0,
    "double": 0.5,
    "string": "a",
    "datetime": np.datetime64("2024-01-01T00:00:00"),
}


@pytest.mark.parametrize("name", PARAMS)
@QUICK
@given(data=st.data())
def test_params_reach_the_model_as_from_python(endpoint, name, data):
    value, to_json = PARAMS[name]
    default = DEFAULTS[name]
    spec = [ParamSpec("one", name, default), ParamSpec("many", name, [default], shape=(-1,))]
    served = endpoint(ColSpec("string", "x"), params=ParamSchema(spec))
    one, many = data.draw(st.none() | value), data.draw(st.lists(value, min_size=1, max_size=3))
    served.from_python(pd.DataFrame({"x": pd.Series(["a"], dtype=object)}), {"one": one, "many": many})
    expected = SEEN["params"]
    body = {"one": None if one is None else to_json(one), "many": [to_json(item) for item in many]}
    served.from_json({"inputs": {"x": "a"}, "params": body})
    assert SEEN["params"] == expected
    assert repr(SEEN["params"]) == repr(expected)


def test_params_that_are_not_given_have_their_defaults(endpoint):
    schema = ParamSchema([ParamSpec("temperature", "double", 0.1), ParamSpec("max_tokens", "long", 1000)])
    served = endpoint(ColSpec("string", "x"), params=schema)
    for body in ({"x": "a"}, {"inputs": {"x": "a"}}, {"inputs": {"x": "a"}, "params": {}}):
        served.from_json(body)
        assert SEEN["params"] == {"temperature": 0.1, "max_tokens": 1000}
    served.from_json({"inputs": {"x": "a"}, "params": {"temperature": 1}})
    assert SEEN["params"] == {"temperature": 1.0, "max_tokens": 1000}


@pytest.mark.parametrize(
    ("params", "location"),
    [
        ({"temperature": "0.5"}, ["params", "temperature"]),
        ({"max_tokens": 1.5}, ["params", "max_tokens"]),
        ({"max_tokens": True}, ["params", "max_tokens"]),
        ({"top_p": 0.5}, ["params", "top_p"]),
        ([], ["params"]),
    ],
)
def test_params_that_do_not_fit_are_named(endpoint, params, location):
    schema = ParamSchema([ParamSpec("temperature", "double", 0.1), ParamSpec("max_tokens", "long", 1000)])
    with pytest.raises(InvalidRequest) as caught:
        endpoint(ColSpec("string", "x"), params=schema).from_json({"inputs": {"x": "a"}, "params": params})
    assert caught.value.errors[0]["location"] == location


def test_a_model_with_params_only_takes_params_only(endpoint):
    served = endpoint(params=ParamSchema([ParamSpec("seed", "long", 1)]))
    for body, expected in (({"params": {"seed": 5}}, 5), ({}, 1)):
        request = served.schema.check(body)
        assert served.schema.inputs.data(request.rows) is None
        assert (request.params or {"seed": 1})["seed"] == expected
    with pytest.raises(InvalidRequest):
        served.schema.check({"inputs": 1})


# --- columns ---------------------------------------------------------------------------------------------------------


def test_names_need_not_be_identifiers(endpoint):
    names = ["sepal length (cm)", "class", "model_config", "_p", "1", "größe"]
    served = endpoint(*(ColSpec("double", name) for name in names))
    body = {name: float(number) for number, name in enumerate(names)}
    seen, answered = served.from_json(body)
    assert list(seen.columns) == names
    assert answered == [body]


def test_integer_names_are_keys_in_json_and_integers_in_the_frame(endpoint):
    served = endpoint(ColSpec("long", 0), ColSpec("long", 1))
    expected = served.from_python(pd.DataFrame([[1, 2]]))
    seen, answered = served.from_json({"0": 1, "1": 2})
    pd.testing.assert_frame_equal(seen, expected, check_column_type=False)
    assert list(seen.columns) == [0, 1]
    assert answered == [{"0": 1, "1": 2}]


def test_the_order_of_keys_does_not_matter(endpoint):
    served = endpoint(ColSpec("long", "a"), ColSpec("string", "b"))
    seen, _ = served.from_json({"b": "x", "a": 1})
    assert list(seen.columns) == ["a", "b"]


def test_an_optional_column_that_is_absent_everywhere_is_absent_from_the_frame(endpoint):
    served = endpoint(
        ColSpec("string", "a"), ColSpec("string", "b", required=False), ColSpec("long", "n", required=False)
    )
    assert list(served.from_json([{"a": "x"}, {"a": "y"}])[0].columns) == ["a"]
    assert list(served.from_json([{"a": "x", "n": None}])[0].columns) == ["a"]
    seen, _ = served.from_json([{"a": "x", "b": "z"}, {"a": "y"}])
    assert seen["b"].tolist() == ["z", None]


def test_optional_whole_numbers_come_in_all_rows_or_in_none(endpoint):
    served = endpoint(ColSpec("string", "a"), ColSpec("long", "n", required=False))
    assert served.from_json([{"a": "x", "n": 1}, {"a": "y", "n": 2}])[0]["n"].dtype == np.int64
    with pytest.raises(InvalidRequest) as caught:
        served.from_json({"inputs": [{"a": "x", "n": 1}, {"a": "y"}]})
    assert caught.value.errors[0]["location"] == ["inputs", 1, "n"]


def test_every_fault_is_named_in_one_answer(endpoint):
    served = endpoint(ColSpec("string", "a"), ColSpec("long", "n"))
    with pytest.raises(InvalidRequest) as caught:
        served.from_json([{"a": 1, "n": "x"}, {"b": 1, "a": "y", "n": 2}, {}])
    locations = [error["location"] for error in caught.value.errors]
    assert locations == [[0, "a"], [0, "n"], [1, "b"], [2, "a"], [2, "n"]]
    assert not any("x" in error["message"].split("'") for error in caught.value.errors)


def test_one_unnamed_scalar_column_takes_bare_values(endpoint):
    served = endpoint(ColSpec("string"))
    for body, expected in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ({"inputs": "a"}, ["a"]),
        ({"inputs": ["a"]}, ["a"]),
    ):
        assert served.from_json(body)[0][0].tolist() == expected


def test_several_unnamed_columns_take_arrays_by_position(endpoint):
    served = endpoint(ColSpec("string"), ColSpec("double"))
    assert served.from_json(["a", 1])[0].values.tolist() == [["a", 1.0]]
    assert served.from_json([["a", 1], ["b", None]])[0][0].tolist() == ["a", "b"]
    for wrong in (["a"], ["a", 1, 2], [["a", 1], ["b"]]):
        with pytest.raises(InvalidRequest):
            served.from_json(wrong)


def test_one_unnamed_nested_column_comes_only_in_the_envelope(endpoint):
    served = endpoint(ColSpec(Array("double")))
    assert served.from_json({"inputs": [[1, 2], [3]]})[0][0].tolist() == [[1.0, 2.0], [3.0]]
    with pytest.raises(InvalidRequest, match="inputs"):
        served.from_json([[1, 2], [3]])


@pytest.mark.parametrize("column", ["inputs", "params"])
def test_a_column_named_like_the_envelope_renames_the_envelope(endpoint, column):
    served = endpoint(ColSpec("string", column), params=ParamSchema([ParamSpec("t", "long", 1)]))
    assert served.from_json({column: "a"})[0][column].tolist() == ["a"]
    assert served.from_json({"$inputs": {column: "a"}, "$params": {"t": 2}})[0][column].tolist() == ["a"]
    assert SEEN["params"] == {"t": 2}


def test_params_inside_a_row_are_told_where_they_belong(endpoint):
    served = endpoint(ColSpec("string", "x"), params=ParamSchema([ParamSpec("t", "long", 1)]))
    with pytest.raises(InvalidRequest, match='stands beside "inputs"'):
        served.from_json({"x": "a", "params": {"t": 1}})


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ([ColSpec("string", "x")], b"[" + b",".join([b"1"] * 300_000) + b"]"),
        ([ColSpec("string", "x")], b"[" + b",".join([b"{}"] * 300_000) + b"]"),
        ([ColSpec("string", "x")], b"{" + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}"),
        ([ColSpec("long", f"c{n}", required=n > 0) for n in range(200)], b"[" + b",".join([b"{}"] * 100_000) + b"]"),
        ([ColSpec(Array("string"), "x")], b'{"x":[' + b",".join([b"1"] * 1_000_000) + b"]}"),
        ([ColSpec(Array(Array("string")), "x")], b'{"x":[' + b",".join([b"1"] * 1_000_000) + b"]}"),
        ([ColSpec(Map("string"), "x")], b'{"x":{' + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}}"),
        ([TensorSpec(np.dtype("int8"), (-1,))], b'{"inputs":[' + b",".join([b"500"] * 500_000) + b"]}"),
        (
            [ColSpec("string", "s"), ColSpec("long", "x", required=False)],
            b'[{"s":"a","x":1},' + b",".join([b'{"s":"a"}'] * 100_000) + b"]",
        ),
    ],
)
def test_a_body_full_of_faults_costs_little(inputs, body):
    schema = RequestSchema(ModelSignature(inputs=Schema(inputs)))
    decoded = from_json(body)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            schema.check(decoded)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(body)
    assert 1 <= len(caught.value.args[0]) <= 20


def test_faults_are_found_in_all_rows_and_counted_as_far_as_they_are_known():
    schema = RequestSchema(ModelSignature(inputs=Schema([ColSpec("long", "n")])))
    rows = [{"n": "x" if position in (0, 1500, 2500) else 1} for position in range(3000)]
    with pytest.raises(InvalidRequest) as caught:
        schema.check(rows)
    assert [error["location"] for error in caught.value.errors] == [[0, "n"], [1500, "n"], [2500, "n"]]
    assert caught.value.detail == "[0].n must be a whole number (and 2 more)."
    with pytest.raises(InvalidRequest) as caught:
        schema.check({"inputs": [{"n": None}] * 100})
    assert len(caught.value.errors) == 20
    assert caught.value.detail == "inputs[0].n must be a whole number (and more)."


def test_names_that_a_caller_made_up_are_told_at_no_great_length():
    schema = RequestSchema(ModelSignature(inputs=Schema([ColSpec("long", "n")])))
    for body in ({"n": 1, "k" * 5000: 1}, {"inputs": {"n": 1}, "k" * 5000: 1}):
        with pytest.raises(InvalidRequest) as caught:
            schema.check(body)
        assert caught.value.errors[0]["location"] == ["k" * 100]


@pytest.mark.parametrize(
    ("name", "sent", "said"),
    [
        ("long", 1.5, "must be a whole number"),
        ("long", "5", "must be a whole number"),
        ("integer", 2**31, "must be from -2147483648 to 2147483647"),
        ("integer", 1e300, "must be from -2147483648 to 2147483647"),
        ("long", 2**63, "and beyond 2**53 be written without a decimal point"),
        ("long", 1e17, "and beyond 2**53 be written without a decimal point"),
    ],
)
def test_whole_numbers_are_told_what_is_wrong_with_them(name, sent, said):
    with pytest.raises(InvalidRequest) as caught:
        RequestSchema(ModelSignature(inputs=Schema([ColSpec(name, "n")]))).check({"n": sent})
    assert caught.value.errors[0]["message"].endswith(said)


def test_zero_keeps_its_sign(endpoint):
    for name in ("float", "double"):
        seen, _ = endpoint(ColSpec(name, "x")).from_json([{"x": 0.0}, {"x": -0.0}])
        assert [math.copysign(1, value) for value in seen["x"]] == [1, -1]
