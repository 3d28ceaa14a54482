"""Random signatures and requests, a model that keeps what reaches it, and a comparison that sees everything."""

import base64
import datetime as dt
import itertools

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel
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

from registry_serve.signature import RequestSchema

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
bits = st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1)
moments = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)).map(dt.datetime.isoformat)

#: MLflow's scalar types, and values of each as JSON has them.
SCALARS = {
    DataType.boolean: st.booleans(),
    DataType.integer: bits,
    DataType.long: bits | st.integers(-(2**63), 2**63 - 1),
    DataType.float: st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    DataType.double: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    DataType.string: text,
    DataType.binary: st.binary(max_size=3).map(lambda value: base64.b64encode(value).decode()),
    DataType.datetime: moments,
}
NESTED = [
    (Array(DataType.double), st.lists(SCALARS[DataType.double], max_size=2)),
    (Array(DataType.string), st.lists(text, max_size=2)),
    (Array(Array(DataType.long)), st.lists(st.lists(bits, max_size=2), max_size=2)),
    (Map(DataType.integer), st.dictionaries(text, bits, max_size=2)),
    (Object([Property("a", DataType.string)]), st.fixed_dictionaries({"a": text})),
    (AnyType(), st.none() | bits | text | st.lists(bits, max_size=2)),
]
PARAMS = ParamSchema(
    [
        ParamSpec("t", "double", 0.5),
        ParamSpec("n", "long", 3),
        ParamSpec("on", "boolean", False),
        ParamSpec("s", "string", "a"),
        ParamSpec("at", "datetime", np.datetime64("2024-01-01T00:00:00")),
        ParamSpec("many", "double", [0.5], shape=(-1,)),
    ]
)
param_values = st.fixed_dictionaries(
    {},
    optional={
        "t": st.sampled_from([0, 1, 1.0, 0.0, -0.0]) | st.none(),
        "n": st.sampled_from([0, 1]),
        "on": st.booleans(),
        "s": st.sampled_from(["", "1"]),
        "at": st.sampled_from(["2024-01-01", "2024-01-01T00:00:00", "2024-01-02"]),
        "many": st.sampled_from([[], [1], [1.0], [0.0], [-0.0]]),
    },
)
TENSORS = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "int64": bits,
    "bool": st.booleans(),
    "str": text,
    "O": text | bits | st.lists(bits, max_size=2),
}


@st.composite
def column_specs(draw, types=tuple(SCALARS), most=4):
    """Columns: named by strings, named by integers, or without names."""
    chosen = draw(st.lists(st.sampled_from(types), min_size=1, max_size=most))
    names = draw(st.sampled_from(["abcdefgh", range(8), None, "abcdefgh"]))
    if names is None:
        return [ColSpec(type_) for type_ in chosen]
    return [ColSpec(type_, name, required=draw(st.booleans())) for type_, name in zip(chosen, names, strict=False)]


@st.composite
def row_bodies(draw, specs, values, most=3):
    """The rows of one request, in an envelope."""
    count = draw(st.integers(1, most))
    # A whole number comes in all rows or in none.
    given = {spec.name: spec.required or draw(st.booleans()) for spec in specs}

    def cell(spec):
        whole = spec.type in (DataType.integer, DataType.long)
        nullable = not whole and (isinstance(spec.type, DataType) or not spec.required)
        if whole and not given[spec.name]:
            return st.none()
        return st.none() | values(spec.type) if nullable else values(spec.type)

    if specs[0].name is None and len(specs) == 1:
        return {"inputs": [draw(cell(specs[0])) for _ in range(count)]}
    if specs[0].name is None:
        return {"inputs": [[draw(cell(spec)) for spec in specs] for _ in range(count)]}
    rows = []
    for _ in range(count):
        whole = [spec for spec in specs if given[spec.name] or spec.type not in (DataType.integer, DataType.long)]
        brought = [spec for spec in whole if spec.required or given[spec.name] or draw(st.booleans())]
        rows.append({str(spec.name): draw(cell(spec)) for spec in brought})
    return {"inputs": rows}


def scalar_values(type_):
    """Return the values of a scalar type."""
    return SCALARS[type_]


def any_values(type_):
    """Return the values of a scalar or nested type."""
    return SCALARS[type_] if isinstance(type_, DataType) else next(v for nested, v in NESTED if nested == type_)


@st.composite
def tensor_specs(draw):
    """One tensor without a name, or up to two with names; in the first dimension mostly free."""
    shapes = st.sampled_from([(-1,), (-1, 2), (-1, -1), (2, -1)])
    specs = [(np.dtype(draw(st.sampled_from(list(TENSORS)))), draw(shapes)) for _ in range(draw(st.integers(1, 2)))]
    if len(specs) == 1 and draw(st.booleans()):
        return [TensorSpec(*specs[0])]
    return [TensorSpec(*spec, name) for spec, name in zip(specs, "ab", strict=False)]


@st.composite
def tensor_bodies(draw, specs):
    """One request with a batch for each tensor, sometimes of unequal lengths or ragged."""
    count = draw(st.integers(1, 2))

    def tensor(spec):
        kind = "str" if spec.type.kind == "U" else spec.type.name.replace("object", "O")
        rows = count + draw(st.sampled_from([0, 0, 0, 1])) if spec.shape[0] == -1 else spec.shape[0]
        if len(spec.shape) == 1:
            return [draw(TENSORS[kind]) for _ in range(rows)]
        width = st.just(2) if spec.shape[1] == 2 else st.integers(1, 2)
        return [[draw(TENSORS[kind]) for _ in range(draw(width))] for _ in range(rows)]

    if specs[0].name is None:
        return {"inputs": tensor(specs[0])}
    return {"inputs": {spec.name: tensor(spec) for spec in specs}}


class Keeps:
    """A model's implementation that keeps what reaches it."""

    def predict(self, data, params=None):
        self.data, self.params = data, params
        return len(data)


def served(specs, params=None, implementation=None, **parts):
    """Return the request schema of a signature, and a pyfunc that has it."""
    signature = ModelSignature(inputs=Schema(specs) if specs else None, params=params)
    card = Model(signature=signature, flavors={"python_function": {"loader_module": "none"}}, **parts)
    return RequestSchema(signature), PyFuncModel(card, implementation or Keeps(), model_id=card.model_id)


def layout(array):
    """Return what of an array's memory a model may see or feel: the order of its elements, and whether it may write."""
    return array.flags.c_contiguous, array.flags.f_contiguous, array.flags.writeable


def assert_identical(one, other):
    """Compare types, dtypes, order, indexes, memory layout and every value with its Python type."""
    assert type(one) is type(other)
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_index_equal(one.index, other.index, exact=True)
        pd.testing.assert_index_equal(one.columns, other.columns, exact=True)
        assert list(one.dtypes) == list(other.dtypes)
        assert [type(name) for name in one.columns] == [type(name) for name in other.columns]
        assert layout(one.values) == layout(other.values)
        for position in range(one.shape[1]):
            assert_identical(one.iloc[:, position].to_numpy(), other.iloc[:, position].to_numpy())
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, layout(one)) == (other.dtype, other.shape, layout(other))
        assert_identical(one.tolist(), other.tolist())
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_identical(list(one.values()), list(other.values()))
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_identical(left, right)
    else:
        assert repr(one) == repr(other)


def blocks(data, counts):
    """Cut what reached a model into the rows of each request."""
    ends = list(itertools.accumulate(counts))
    slices = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    if isinstance(data, dict):
        return [{name: array[each].copy() for name, array in data.items()} for each in slices]
    if isinstance(data, pd.DataFrame):
        return [data.iloc[each].reset_index(drop=True).copy() for each in slices]
    return [data[each] for each in slices]
