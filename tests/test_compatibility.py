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

SCALARS = st.sampled_from(
    [DataType.integer, DataType.long, DataType.float, DataType.double, DataType.string, DataType.boolean]
)
TYPES = st.recursive(
    SCALARS | st.just(AnyType()),
    lambda inner: st.builds(Array, inner.filter(lambda t: not isinstance(t, AnyType))) | st.builds(Map, inner),
    max_leaves=3,
)
REQUIRED = st.booleans()
COLUMNS = st.lists(st.tuples(st.sampled_from("abc"), TYPES, REQUIRED), min_size=1, max_size=3, unique_by=lambda c: c[0])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**24 + 1, 2**31, 2**53 + 1, 2**62, 1.0, 1.5, 1e39, 0.1])
    | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
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
    body = data.draw(st.lists(row, max_size=2))
    try:
        RequestSchema(contract).check(body)
    except InvalidRequest:
        return
    RequestSchema(other).check(body)
