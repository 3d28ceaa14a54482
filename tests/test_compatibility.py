"""Two signatures -> differences; and what 'backward' promises, tried with real requests."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
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

from registry_serve.errors import InvalidRequest
from registry_serve.signature import Compatibility, RequestSchema, differences

EXACT, BACKWARD = Compatibility.EXACT, Compatibility.BACKWARD


def signature(*inputs, outputs=(), params=()):
    return ModelSignature(
        inputs=Schema(list(inputs)) if inputs else None,
        outputs=Schema(list(outputs)) if outputs else None,
        params=ParamSchema(list(params)) if params else None,
    )


def kinds(contract, other, compatibility=EXACT):
    return {(each.where, each.column, each.kind) for each in differences(contract, other, compatibility)}


PROMPT = ColSpec("string", "prompt")
T = ParamSpec("t", "double", 0.1)


@pytest.mark.parametrize(
    ("contract", "other", "exact", "backward"),
    [
        (signature(PROMPT), signature(PROMPT), set(), set()),
        (
            signature(PROMPT),
            signature(ColSpec("string", "text")),
            {("inputs", "prompt", "removed"), ("inputs", "text", "added")},
            {("inputs", "prompt", "removed"), ("inputs", "text", "added")},
        ),
        (
            signature(PROMPT),
            signature(PROMPT, ColSpec("long", "n", required=False)),
            {("inputs", "n", "added")},
            set(),
        ),
        (
            signature(PROMPT),
            signature(PROMPT, ColSpec("long", "n")),
            {("inputs", "n", "added")},
            {("inputs", "n", "added")},
        ),
        (
            signature(ColSpec("integer", "n")),
            signature(ColSpec("long", "n")),
            {("inputs", "n", "type")},
            set(),
        ),
        (
            signature(ColSpec("long", "n")),
            signature(ColSpec("double", "n")),
            {("inputs", "n", "type")},
            {("inputs", "n", "type")},
        ),
        (
            signature(ColSpec("string", "a", required=False)),
            signature(ColSpec("string", "a")),
            {("inputs", "a", "required")},
            {("inputs", "a", "required")},
        ),
        (
            signature(ColSpec("string", "a")),
            signature(ColSpec("string", "a", required=False)),
            {("inputs", "a", "required")},
            set(),
        ),
        (signature(PROMPT), signature(PROMPT, params=[T]), {("params", "t", "added")}, set()),
        (signature(PROMPT, params=[T]), signature(PROMPT), {("params", "t", "removed")}, {("params", "t", "removed")}),
        (
            signature(PROMPT, params=[T]),
            signature(PROMPT, params=[ParamSpec("t", "double", 0.2)]),
            {("params", "t", "default")},
            set(),
        ),
        (
            signature(PROMPT, params=[T]),
            signature(PROMPT, params=[ParamSpec("t", "double", [0.1], shape=(-1,))]),
            {("params", "t", "shape")},
            {("params", "t", "shape")},
        ),
        (
            signature(PROMPT, params=[ParamSpec("t", "long", 1)]),
            signature(PROMPT, params=[ParamSpec("t", "string", "a")]),
            {("params", "t", "type"), ("params", "t", "default")},
            {("params", "t", "type")},
        ),
        (
            signature(PROMPT, outputs=[ColSpec("long", "y")]),
            signature(PROMPT, outputs=[ColSpec("double", "y")]),
            {("outputs", "y", "type")},
            {("outputs", "y", "type")},
        ),
        (
            signature(PROMPT, outputs=[ColSpec("double", "y")]),
            signature(PROMPT, outputs=[ColSpec("integer", "y"), ColSpec("string", "why")]),
            {("outputs", "y", "type"), ("outputs", "why", "added")},
            set(),
        ),
        (
            signature(PROMPT, outputs=[ColSpec("string", "y")]),
            signature(PROMPT, outputs=[ColSpec("string", "y", required=False)]),
            {("outputs", "y", "required")},
            {("outputs", "y", "required")},
        ),
        (
            signature(PROMPT, outputs=[PROMPT]),
            signature(PROMPT),
            {("outputs", None, "form")},
            {("outputs", None, "form")},
        ),
        (signature(PROMPT), signature(PROMPT, outputs=[PROMPT]), {("outputs", None, "form")}, set()),
        (signature(PROMPT), signature(ColSpec("string")), {("inputs", None, "form")}, {("inputs", None, "form")}),
        (
            signature(PROMPT),
            signature(params=[T]),
            {("inputs", None, "form"), ("params", "t", "added")},
            {("inputs", None, "form")},
        ),
        (
            signature(PROMPT),
            signature(PROMPT, ColSpec("string", "inputs", required=False)),
            {("inputs", None, "form"), ("inputs", "inputs", "added")},
            {("inputs", None, "form")},
        ),
        (
            signature(TensorSpec(np.dtype("float32"), (-1, 4))),
            signature(TensorSpec(np.dtype("float32"), (-1, 5))),
            {("inputs", "0", "shape")},
            {("inputs", "0", "shape")},
        ),
        (
            signature(TensorSpec(np.dtype("float32"), (-1, 4))),
            signature(TensorSpec(np.dtype("float64"), (-1, -1))),
            {("inputs", "0", "type"), ("inputs", "0", "shape")},
            set(),
        ),
        (
            signature(ColSpec(Object([Property("a", DataType.long)]), "o")),
            signature(
                ColSpec(Object([Property("a", DataType.long), Property("b", DataType.string, required=False)]), "o")
            ),
            {("inputs", "o", "type")},
            set(),
        ),
        (signature(ColSpec(Array("long"), "a")), signature(ColSpec(AnyType(), "a")), {("inputs", "a", "type")}, set()),
    ],
)
def test_differences_are_found(contract, other, exact, backward):
    assert kinds(contract, other) == exact
    assert kinds(contract, other, BACKWARD) == backward


def test_the_order_of_columns_and_what_old_files_leave_out_are_no_difference():
    contract = signature(ColSpec("string", "a"), ColSpec("long", "b"), ColSpec(Array("long"), "c"))
    other = signature(ColSpec(Array("long"), "c"), ColSpec("long", "b"), ColSpec("string", "a"))
    assert kinds(contract, other) == set()
    old = ModelSignature.from_dict(
        {
            "inputs": json.dumps(
                [{"type": "array", "items": {"type": "long"}, "name": "c"}, {"type": "string", "name": "a"}]
            )
        }
    )
    new = signature(ColSpec("string", "a"), ColSpec(Array("long"), "c"))
    assert old.inputs.inputs[0].required is None
    assert kinds(old, new) == kinds(new, old) == set()
    assert kinds(old, new, BACKWARD) == kinds(new, old, BACKWARD) == set()


def test_positional_columns_are_compared_by_position():
    contract = signature(ColSpec("string"), ColSpec("long"))
    assert kinds(contract, signature(ColSpec("long"), ColSpec("string"))) == {
        ("inputs", "0", "type"),
        ("inputs", "1", "type"),
    }


def test_a_type_hint_makes_another_form():
    one = signature(ColSpec("string"))
    found = differences(one, one, EXACT, from_type_hint=(False, True))
    assert [each.kind for each in found] == ["form"]


@pytest.mark.parametrize(
    ("one_row", "exact", "backward"),
    [
        ((False, False), 0, 0),
        ((True, True), 0, 0),
        ((False, True), 1, 1),
        ((True, False), 1, 0),
    ],
)
def test_a_model_that_takes_one_row_makes_another_form(one_row, exact, backward):
    one = signature(PROMPT)
    for compatibility, count in ((EXACT, exact), (BACKWARD, backward)):
        found = differences(one, one, compatibility, one_row=one_row)
        assert [(each.where, each.kind) for each in found] == [("inputs", "form")] * count


def test_differences_come_in_the_order_of_the_signature():
    params = [ParamSpec(name, "long", 1) for name in "zyxwvu"]
    found = differences(signature(PROMPT), signature(PROMPT, params=params))
    assert [each.column for each in found] == list("zyxwvu")


def test_every_difference_is_a_sentence_and_ready_for_json():
    contract = signature(PROMPT, outputs=[ColSpec("long", "y")], params=[T])
    other = signature(ColSpec("long", "prompt"), ColSpec("string", "text"), outputs=[ColSpec("string", "y")])
    for each in differences(contract, other):
        told = json.loads(json.dumps(each.as_json()))
        assert {"where", "column", "expected", "found", "message"} <= told.keys()
        assert repr(each.column) in each.message
    messages = [each.message for each in differences(contract, other)]
    assert messages == [
        "input 'prompt' is long, not string",
        "input 'text' (string, required) is new",
        "param 't' is missing",
        "output 'y' is string, not long",
    ]


# --- what 'backward' promises ----------------------------------------------------------------------------------------

SCALARS = st.sampled_from(list(DataType))


def nested(inner):
    some = st.lists(st.builds(Property, st.sampled_from("ab"), inner, st.booleans()), min_size=1, max_size=2)
    objects = some.filter(lambda found: len({item.name for item in found}) == len(found)).map(Object)
    return st.builds(Array, inner) | st.builds(Map, inner) | objects


TYPES = st.recursive(SCALARS | st.just(AnyType()), nested, max_leaves=3)
REQUIRED = st.booleans()
COLUMNS = st.lists(st.tuples(st.sampled_from("abc"), TYPES, REQUIRED), min_size=1, max_size=3, unique_by=lambda c: c[0])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**24 + 1, 2**31, 2**53 + 1, 2**62, 1.0, 1.5, 1e39, 0.1])
    | st.sampled_from(["", "x", "a\0", "YQA=", "YQ==", "2024-05-01", "2024-05-01T12:30:00.123456789"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)


PROMISE = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def keeps_its_promise(contract, other, body):
    """Whether a body that is valid under the contract is valid for the other version."""
    try:
        RequestSchema(contract).check(body)
    except InvalidRequest:
        return True
    RequestSchema(other).check(body)
    return True


@PROMISE
@given(ours=COLUMNS, theirs=COLUMNS, data=st.data())
def test_what_is_valid_under_the_contract_is_valid_for_a_backward_compatible_version(ours, theirs, data):
    if data.draw(st.booleans()):  # most random pairs agree in nothing: start some from the same columns
        theirs = [
            (name, data.draw(TYPES) if data.draw(st.booleans()) else kind, data.draw(REQUIRED))
            for name, kind, _ in ours
        ]
    contract = signature(*(ColSpec(kind, name, required) for name, kind, required in ours))
    other = signature(*(ColSpec(kind, name, required) for name, kind, required in theirs))
    assume(not differences(contract, other, BACKWARD))
    row = st.fixed_dictionaries({}, optional={name: VALUES for name, _, _ in ours})
    assert keeps_its_promise(contract, other, data.draw(st.lists(row, max_size=2)))


EDGES = [None, True, 0, -1, 3.0, 1.5, 0.1, 1e39, 1e-50, 255, 2**11 + 1, 2**24 + 1, 2**31, 2**53 + 1, 2**62, 2**64 - 1]
EDGES += ["", "x", "a\0", "YQA=", "YQ==", "2024-05-01", "2024-05-01T12:30:00.123456789"]


@pytest.mark.parametrize(
    "within",
    [
        lambda kind, value: (kind, value),
        lambda kind, value: (Array(kind), [value]),
        lambda kind, value: (Map(Array(kind)), {"k": [value]}),
        lambda kind, value: (Object([Property("a", kind, required=False)]), {"a": value}),
    ],
    ids=["plain", "array", "map", "object"],
)
@pytest.mark.parametrize("ours", [*DataType, AnyType()], ids=str)
def test_the_promise_holds_for_every_pair_of_types(ours, within):
    for theirs in [*DataType, AnyType()]:
        contract, other = (signature(ColSpec(within(kind, None)[0], "x")) for kind in (ours, theirs))
        if not differences(contract, other, BACKWARD):
            assert all(keeps_its_promise(contract, other, {"x": within(ours, value)[1]}) for value in EDGES)


@PROMISE
@given(ours=st.lists(TYPES, min_size=1, max_size=2), data=st.data())
def test_the_promise_holds_for_columns_without_names(ours, data):
    theirs = [data.draw(TYPES) if data.draw(st.booleans()) else kind for kind in ours]
    contract, other = (signature(*(ColSpec(kind) for kind in kinds)) for kinds in (ours, theirs))
    assume(not differences(contract, other, BACKWARD))
    row = VALUES if len(ours) == 1 else st.tuples(*(VALUES for _ in ours)).map(list)
    for body in (data.draw(row), data.draw(st.lists(row, max_size=2))):
        assert keeps_its_promise(contract, other, body)
        assert keeps_its_promise(contract, other, {"inputs": body})


NUMBERS = ["bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"]
NAMES = [*NUMBERS, "str", "bytes", "object", "datetime64[D]", "datetime64[ns]"]
DTYPES = st.sampled_from(NAMES).map(np.dtype)
SIZES = st.sampled_from([-1, 1, 2])
LEAVES = VALUES | st.sampled_from([0, 1, 255, 2**11 + 1, 2**64 - 1, 1e-7, 65504.0, 70000.0])


def tensor(shape):
    if not shape:
        return LEAVES
    least, most = (0, 2) if shape[0] == -1 else (shape[0], shape[0])
    return st.lists(tensor(shape[1:]), min_size=least, max_size=most)


@PROMISE
@given(kind=DTYPES, shape=st.lists(SIZES, min_size=1, max_size=2), name=st.sampled_from([None, "a"]), data=st.data())
def test_the_promise_holds_for_tensors(kind, shape, name, data):
    wider = [data.draw(st.sampled_from([size, -1])) for size in shape]
    contract = signature(TensorSpec(kind, tuple(shape), name))
    other = signature(TensorSpec(data.draw(DTYPES | st.just(kind)), tuple(wider), name))
    assume(not differences(contract, other, BACKWARD))
    batch = data.draw(tensor(shape))
    assert keeps_its_promise(contract, other, {"inputs": batch if name is None else {name: batch}})


@pytest.mark.parametrize("kind", NAMES)
def test_the_promise_holds_for_every_pair_of_dtypes(kind):
    for wide in NAMES:
        contract, other = (signature(TensorSpec(np.dtype(each), (-1,))) for each in (kind, wide))
        if not differences(contract, other, BACKWARD):
            assert all(keeps_its_promise(contract, other, {"inputs": [value]}) for value in EDGES)


DEFAULTS = {
    "boolean": True,
    "integer": 1,
    "long": 1,
    "float": 1.5,
    "double": 0.5,
    "string": "a",
    "datetime": np.datetime64("2024-05-01T12:30:00"),
}


def param(name, kind, many):
    default = DEFAULTS[kind]
    return ParamSpec(name, kind, [default] if many else default, shape=(-1,) if many else None)


PARAMS = st.lists(
    st.builds(param, st.sampled_from("ab"), st.sampled_from(list(DEFAULTS)), st.booleans()),
    max_size=2,
    unique_by=lambda spec: spec.name,
)


@PROMISE
@given(ours=PARAMS, theirs=PARAMS, same=st.booleans(), data=st.data())
def test_the_promise_holds_for_params(ours, theirs, same, data):
    if same:
        known = {spec.name for spec in ours}
        theirs = [*ours, *(spec for spec in theirs if spec.name not in known)]
    contract, other = signature(PROMPT, params=ours), signature(PROMPT, params=theirs)
    assume(not differences(contract, other, BACKWARD))
    given_params = st.fixed_dictionaries({}, optional={spec.name: VALUES | st.lists(VALUES) for spec in ours})
    assert keeps_its_promise(contract, other, {"inputs": {"prompt": "x"}, "params": data.draw(given_params)})
