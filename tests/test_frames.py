"""Frames are what pandas itself would make of the columns, and requests are merged only where no model can tell."""

import json
import warnings

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

from registry_serve.models.direct import shortest_way
from registry_serve.signature import RequestSchema, frames
from tests.signatures import (
    NESTED,
    PARAMS,
    SCALARS,
    Keeps,
    any_values,
    assert_identical,
    blocks,
    column_specs,
    param_values,
    row_bodies,
    served,
    tensor_bodies,
    tensor_specs,
)

MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
ALL_TYPES = (*SCALARS, *(type_ for type_, _ in NESTED))


#: How frames can be made here: of blocks since pandas 3, of columns always.
WAYS = ["columns"] if frames.create_dataframe_from_blocks is None else ["blocks", "columns"]


def test_frames_are_made_of_blocks_wherever_pandas_can():
    assert (frames.create_dataframe_from_blocks is not None) == (pd.__version__ >= "3")


@pytest.fixture(params=WAYS)
def pandas_way(request, monkeypatch):
    """Frames are made in each of these ways."""
    if request.param == "columns":
        monkeypatch.setattr(frames, "create_dataframe_from_blocks", None)


def by_pandas(specs, rows):
    """Build a frame one column after another, by pandas' own means alone."""
    dtypes = {"boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64"}
    made = {}
    for position, spec in enumerate(specs):
        if spec.name is None:
            values = [row[position] if len(specs) > 1 else row for row in rows]
        else:
            values = [row.get(str(spec.name)) for row in rows]
        if not spec.required and rows:
            brought = values if spec.type in (DataType.integer, DataType.long) else None
            if brought is None and not any(str(spec.name) in row for row in rows):
                continue
            if brought is not None and all(value is None for value in brought):
                continue
        name = spec.type.name if isinstance(spec.type, DataType) else "object"
        dtype = dtypes.get(name, "datetime64[ns]" if name == "datetime" else "object")
        dtype = "object" if dtype == "bool" and None in values else dtype
        column = pd.Series(np.array(values, dtype=dtype)) if name in dtypes and dtype != "object" else None
        made[position if spec.name is None else spec.name] = (
            pd.Series(values, dtype=dtype) if column is None else column
        )
    return pd.DataFrame(made, index=pd.RangeIndex(len(rows)))


@pytest.mark.usefixtures("pandas_way")
@MANY
@given(data=st.data())
def test_a_frame_is_what_pandas_makes_of_its_columns(data):
    specs = data.draw(column_specs(ALL_TYPES, most=6))
    schema = RequestSchema(ModelSignature(inputs=Schema(specs)))
    rows = schema.check(data.draw(row_bodies(specs, any_values))).rows
    assert_identical(schema.inputs.data(rows), by_pandas(specs, rows))


@pytest.mark.usefixtures("pandas_way")
def test_a_frame_without_rows_has_all_columns():
    specs = [ColSpec(type_, str(number), required=number % 2 == 0) for number, type_ in enumerate(ALL_TYPES)]
    schema = RequestSchema(ModelSignature(inputs=Schema(specs)))
    assert_identical(schema.inputs.data([]), by_pandas(specs, []))


@pytest.mark.usefixtures("pandas_way")
def test_a_frame_without_columns_keeps_its_rows():
    schema = RequestSchema(ModelSignature(inputs=Schema([ColSpec("long", "x", required=False)])))
    frame = schema.inputs.data(schema.check([{}, {"x": None}]).rows)
    assert frame.shape == (2, 0)


@pytest.mark.usefixtures("pandas_way")
def test_what_a_model_does_to_its_frame_stays_in_its_request():
    specs = [ColSpec("double", "a"), ColSpec("double", "b"), ColSpec("string", "c"), ColSpec("datetime", "d")]
    schema = RequestSchema(ModelSignature(inputs=Schema(specs)))
    request = schema.check([{"a": 1, "b": 2, "c": "x", "d": "2024-01-01"}] * 2)
    first = schema.inputs.data(request.rows)
    first.columns.name, first.index.name = "renamed", "renamed"
    first.iloc[0, 0] = 5.0
    first["b"] += 1
    first.loc[:, "c"] = "changed"
    first["new"] = first["a"] + first["b"]
    del first["d"]
    assert first.to_dict("list") == {"a": [5.0, 1.0], "b": [3.0, 3.0], "c": ["changed"] * 2, "new": [8.0, 4.0]}
    assert_identical(schema.inputs.data(request.rows), by_pandas(specs, request.rows))


def test_layouts_of_many_optional_columns_are_not_kept_forever():
    specs = [ColSpec("string", f"c{number}", required=False) for number in range(10)]
    schema = RequestSchema(ModelSignature(inputs=Schema(specs)))
    for number in range(2 * frames.MOST_LAYOUTS):
        row = {f"c{bit}": "x" for bit in range(10) if number >> bit & 1}
        assert list(schema.inputs.data(schema.check([row]).rows).columns) == sorted(row)


# --- merging ---------------------------------------------------------------------------------------------------------


@st.composite
def columns_and_bodies(draw):
    """A signature of columns, and some requests for it."""
    specs = draw(column_specs(ALL_TYPES, most=3))
    params = draw(st.sampled_from([None, PARAMS]))
    bodies = draw(st.lists(row_bodies(specs, any_values, most=2), min_size=2, max_size=4))
    if params is not None:
        bodies = [body | draw(st.just({}) | st.fixed_dictionaries({"params": param_values})) for body in bodies]
    return specs, params, bodies


@st.composite
def tensors_and_bodies(draw):
    """A signature of tensors, and some requests for it."""
    specs = draw(tensor_specs())
    return specs, None, draw(st.lists(tensor_bodies(specs), min_size=2, max_size=4))


def reached(schema, model, request):
    """Return what reaches the model's own predict."""
    seen = model.get_raw_model()
    shortest_way(model)(schema.inputs.data(request.rows), request.params)
    return seen.data, seen.params


class Raw(Keeps):
    """An implementation that can be asked for."""

    def get_raw_model(self):
        return self


def merge_as_grouped(case, group):
    """Merge the requests of each group, compare what reaches the model, and return how many were merged."""
    specs, params, bodies = case
    schema, model = served(specs, params, Raw())
    groups = {}
    for body in bodies:
        request = schema.check(body)
        groups.setdefault(group(schema, request), []).append(request)
    groups.pop(None, None)
    for requests in groups.values():
        merged = schema.merge(requests)
        assert merged.count == sum(request.count for request in requests)
        data, given_params = reached(schema, model, merged)
        parts = blocks(data, [request.count for request in requests])
        for request, part in zip(requests, parts, strict=True):
            alone, params_alone = reached(schema, model, request)
            assert_same_rows(part, alone)
            assert_identical(given_params, params_alone)
    return sum(len(requests) - 1 for requests in groups.values())


def assert_same_rows(part, alone):
    if isinstance(part, pd.DataFrame):
        pd.testing.assert_frame_equal(part, alone, check_exact=True, check_column_type="exact")
        for position in range(part.shape[1]):
            assert_same_rows(part.iloc[:, position].to_numpy(), alone.iloc[:, position].to_numpy())
    elif isinstance(part, np.ndarray):
        assert (part.dtype, part.shape) == (alone.dtype, alone.shape)
        assert_identical(part.tolist() if part.dtype.hasobject else part.copy(), listed(alone, part))
    elif isinstance(part, dict):
        assert list(part) == list(alone)
        for name in part:
            assert_same_rows(part[name], alone[name])
    else:
        assert_identical(part, alone)


def listed(array, like):
    return array.tolist() if like.dtype.hasobject else array.copy()


CASES = {"columns": columns_and_bodies(), "tensors": tensors_and_bodies()}


@pytest.mark.parametrize("form", CASES)
def test_merged_requests_reach_the_model_as_alone(form):
    merged = []

    @MANY
    @given(case=CASES[form])
    def holds(case):
        merged.append(merge_as_grouped(case, RequestSchema.group))

    holds()
    assert sum(1 for count in merged if count) > len(merged) / 10


def without_params(schema, request):
    key = schema.group(request)
    return key and key[0]


def without_rows(schema, request):
    key = schema.group(request)
    return key and key[1:]


def without_types(schema, request):
    key = schema.group(request)
    return key and (key[0], request.params and repr(sorted(request.params)))


def whatever(schema, request):
    return 0


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        ("columns", whatever),
        ("columns", without_params),
        ("columns", without_rows),
        ("columns", without_types),
        ("tensors", whatever),
        ("tensors", without_rows),
    ],
)
def test_a_key_that_leaves_something_out_is_found_out(form, wrong):
    @settings(MANY, max_examples=2000, database=None, report_multiple_bugs=False)
    @given(case=CASES[form])
    def holds(case):
        merge_as_grouped(case, wrong)

    with pytest.raises((AssertionError, ValueError, TypeError)):  # a difference, or rows that cannot be put together
        holds()


def keys(inputs, *bodies, params=None, **options):
    schema = RequestSchema(ModelSignature(inputs=Schema(inputs) if inputs else None, params=params), **options)
    return [schema.group(schema.parse(json.dumps(body).encode())) for body in bodies]


def test_requests_of_plain_required_columns_have_one_key():
    plain = [ColSpec("string", "s"), ColSpec("double", "d"), ColSpec("long", "n"), ColSpec("datetime", "t")]
    row = {"s": "a", "d": 1, "n": 1, "t": "2024-01-01"}
    assert keys(plain, row, [row | {"d": None, "t": None}, row]) == [((), None)] * 2


def test_optional_columns_and_missing_booleans_tell_requests_apart():
    columns = [ColSpec("boolean", "b"), ColSpec("long", "n", required=False), ColSpec("string", "s", required=False)]
    bodies = [
        {"b": True},
        {"b": None},
        {"b": True, "n": 1},
        {"b": True, "s": "x"},
        {"b": True, "s": None},
    ]
    found = keys(columns, *bodies)
    assert len(set(found)) == len(bodies)
    assert keys(columns, [{"b": False, "n": None}, {"b": True}]) == found[:1]
    assert keys(columns, [{"b": False, "n": 2}, {"b": True, "n": 3}]) == found[2:3]


def test_an_optional_double_that_is_there_is_not_equal_to_one_that_is_not():
    one, other = keys([ColSpec("long", "n"), ColSpec("double", "d", required=False)], {"n": 1, "d": 1}, {"n": 1})
    assert one != other


def test_params_tell_requests_apart_by_type_and_value():
    params = ParamSchema([ParamSpec("t", "double", 0.5), ParamSpec("many", "double", [1.0], shape=(-1,))])
    given_params = [{"t": 1}, {"t": 1.0}, {"t": 0.0}, {"t": -0.0}, {"t": None}, {"many": [1.0]}, {"many": []}, {}]
    bodies = [{"inputs": "a", "params": each} for each in given_params]
    found = keys([ColSpec("string")], *bodies, "a", params=params)
    assert len(set(found)) == len(bodies) + 1
    assert keys([ColSpec("string")], *bodies, "b", params=params) == found


def test_some_requests_are_never_merged():
    string = [ColSpec("string", "s")]
    assert keys(string, {"s": "a"}, one_row=True) == [None]
    assert keys(string, []) == [None]
    assert keys(None, {"params": {"t": 1}}, params=ParamSchema([ParamSpec("t", "long", 1)])) == [None]
    assert keys([ColSpec(AnyType(), "x"), *string], {"x": 1, "s": "a"}) == [None]
    assert keys([ColSpec(AnyType())], {"inputs": [1]}) == [None]
    assert keys([TensorSpec(np.dtype("int8"), (2,))], {"inputs": [1, 2]}) == [None]
    unequal = [TensorSpec(np.dtype("int8"), (-1,), name) for name in "ab"]
    assert keys(unequal, {"inputs": {"a": [1], "b": [1, 2]}}, {"inputs": {"a": [], "b": []}}) == [None, None]


def test_tensors_are_told_apart_by_their_shape_and_by_dtypes_that_follow_the_values():
    dense, ragged, other = {"inputs": [[1, 2]]}, {"inputs": [[1, 2], [3]]}, {"inputs": [[1], [2]]}
    assert len(set(keys([TensorSpec(np.dtype("float32"), (-1, -1))], dense, ragged, other))) == 3
    short, long = {"inputs": ["a"]}, {"inputs": ["abc"]}
    assert len(set(keys([TensorSpec(np.dtype("str"), (-1,))], short, long))) == 2
    assert len(set(keys([TensorSpec(np.dtype("O"), (-1,))], short, long))) == 1


class Listed(mlflow.pyfunc.PythonModel):
    """MLflow gives it the first column that has a string in the first row."""

    def predict(self, context, model_input: list[str], params=None):
        return model_input


def test_the_column_that_a_hint_for_strings_picks_is_the_same_when_merged(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(tmp_path / "model", python_model=Listed(), pip_requirements=[])
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    signature = ModelSignature(inputs=Schema([ColSpec("string", "a"), ColSpec("string", "b")]))
    model.metadata.signature = signature
    schema = RequestSchema(signature)
    by_key = {}
    for rows in ({"a": "1", "b": "2"}, {"a": None, "b": "3"}, [{"a": None, "b": "4"}, {"a": "5", "b": "6"}]):
        request = schema.check(rows)
        by_key.setdefault(schema.group(request), []).append(request)
    answered = [shortest_way(model)(schema.inputs.data(schema.merge(each).rows), None) for each in by_key.values()]
    assert answered == [["1"], ["3", "4", "6"]]


def test_type_hints_merge_lists_of_values():
    signature = ModelSignature(inputs=Schema([ColSpec(Object([Property("a", DataType.string)]))]))
    schema = RequestSchema(signature, from_type_hint=True)
    one, two = schema.check({"inputs": [{"a": "x"}]}), schema.check({"inputs": [{"a": "y"}, {"a": "z"}]})
    assert schema.group(one) == schema.group(two) is not None
    merged = schema.merge([one, two])
    assert (merged.rows, merged.count) == ([{"a": "x"}, {"a": "y"}, {"a": "z"}], 3)


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ([ColSpec(Map("string"), "m"), ColSpec(Array("string"), "l")], {"m": {"a": "x"}, "l": ["y"]}),
        ([TensorSpec(np.dtype("O"), (-1,))], {"inputs": [["x"]]}),
        ([ColSpec(Map("string"))], {"inputs": [{"a": "x"}]}),
    ],
)
def test_a_model_that_changes_merged_values_changes_no_request(inputs, body):
    params = ParamSchema([ParamSpec("many", "string", ["a"], shape=(-1,))])
    schema = RequestSchema(ModelSignature(inputs=Schema(inputs), params=params))
    envelope = body if "inputs" in body else {"inputs": body}
    requests = [schema.check(envelope | {"params": {"many": ["p"]}}) for _ in range(2)]
    before = repr(requests)
    merged = schema.merge(requests)
    merged.params["many"].append("changed")
    for value in np.ravel(schema.inputs.data(merged.rows)):
        value.clear()
    assert repr(requests) == before
