"""The short way into a pyfunc hands its model exactly what ``PyFuncModel.predict`` would."""

import sys
import textwrap
import warnings

import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.context import Context, get_prediction_context, set_prediction_context
from mlflow.types.schema import (
    AnyType,
    Array,
    ColSpec,
    Map,
    Object,
    ParamSchema,
    ParamSpec,
    Property,
    Schema,
    TensorSpec,
)
from sklearn.base import BaseEstimator

from registry_serve.models.direct import shortest_way
from registry_serve.signature import RequestSchema
from tests.signatures import (
    PARAMS,
    SCALARS,
    Keeps,
    assert_identical,
    column_specs,
    param_values,
    row_bodies,
    scalar_values,
    served,
    tensor_bodies,
    tensor_specs,
)

MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
SEEN = []


def is_direct(model):
    return shortest_way(model) != model.predict


def both_ways(schema, model, body):
    """Ask by MLflow's way and by the short one, and return what reached the implementation: data, params."""
    request = schema.check(body)
    seen = []
    for ask in (lambda data, params: model.predict(data, params=params), shortest_way(model)):
        SEEN.clear()
        ask(schema.inputs.data(request.rows), request.params)
        seen.append(list(SEEN))
    return seen


class Notes(Keeps):
    """Notes what reaches it, and in which context."""

    def predict(self, data, params=None):
        context = get_prediction_context()
        SEEN.extend([data, params, context.model_id, context.request_id, context.dependencies_schemas])
        return len(data) if data is not None else 0


@MANY
@given(data=st.data())
def test_columns_and_params_reach_the_model_as_by_mlflows_way(data):
    specs = data.draw(column_specs())
    params = data.draw(st.sampled_from([None, PARAMS]))
    body = data.draw(row_bodies(specs, scalar_values))
    if params is not None:
        body |= data.draw(st.just({}) | st.fixed_dictionaries({"params": param_values}))
    schema, model = served(specs, params, Notes())
    assert is_direct(model) == any(spec.required for spec in specs)
    by_mlflow, directly = both_ways(schema, model, body)
    assert_identical(directly, by_mlflow)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("type_", SCALARS)
@settings(MANY, max_examples=60)
@given(data=st.data())
def test_every_scalar_type_reaches_the_model_as_by_mlflows_way(type_, required, data):
    specs = [ColSpec("long", "always"), ColSpec(type_, "x", required=required)]
    schema, model = served(specs, None, Notes())
    assert is_direct(model)
    assert_identical(*both_ways(schema, model, data.draw(row_bodies(specs, scalar_values))))


@MANY
@given(data=st.data())
def test_tensors_reach_the_model_as_by_mlflows_way(data):
    specs = data.draw(tensor_specs())
    schema, model = served(specs, None, Notes())
    assert is_direct(model) == all(spec.type.kind in "biuf" for spec in specs)
    assert_identical(*both_ways(schema, model, data.draw(tensor_bodies(specs))))


def test_a_model_with_params_only_gets_them_with_their_defaults():
    schema, model = served(None, PARAMS, Notes())
    assert is_direct(model)
    for body in ({}, {"params": {}}, {"params": {"many": [1], "t": 1}}):
        by_mlflow, directly = both_ways(schema, model, body)
        assert_identical(directly, by_mlflow)
        assert set(directly[1]) == {spec.name for spec in PARAMS.params}


# --- what the short way leaves to MLflow -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "specs",
    [
        [ColSpec(Array("double"), "x")],
        [ColSpec(Map("double"), "x")],
        [ColSpec(Object([Property("a", "double")]), "x")],
        [ColSpec(AnyType(), "x")],
        [ColSpec("long", "a"), ColSpec(AnyType(), "x")],
        [ColSpec("long", "a", required=False)],
        [TensorSpec(np.dtype("str"), (-1,))],
        [TensorSpec(np.dtype("float64"), (-1,), "a"), TensorSpec(np.dtype("O"), (-1,), "b")],
    ],
)
def test_what_mlflow_may_change_goes_its_way(specs):
    assert not is_direct(served(specs)[1])


@pytest.mark.parametrize("flag", ["_is_signature_from_type_hint", "_is_type_hint_from_example"])
def test_type_hints_go_mlflows_way(flag):
    _, model = served([ColSpec("string", "x")])
    assert is_direct(model)
    setattr(model.metadata.signature, flag, True)
    assert not is_direct(model)


def test_models_with_dependencies_that_mlflow_announces_go_its_way():
    schema, model = served(
        [ColSpec("string", "x")], None, Notes(), metadata={"dependencies_schemas": {"retrievers": []}}
    )
    assert not is_direct(model)
    request = schema.check({"x": "a"})
    SEEN.clear()
    shortest_way(model)(schema.inputs.data(request.rows), None)
    assert SEEN[-1] == {"retrievers": "[]"}


class OwnPredict(PyFuncModel):
    """Does something of its own before it predicts."""


def test_a_pyfunc_of_another_class_goes_its_own_way():
    _, model = served([ColSpec("string", "x")])
    assert not is_direct(OwnPredict(model.metadata, Keeps()))


# --- the context -----------------------------------------------------------------------------------------------------


def test_the_model_finds_mlflows_context_with_its_own_id():
    schema, model = served([ColSpec("string", "x")], None, Notes(), model_id="m-1")
    by_mlflow, directly = both_ways(schema, model, {"x": "a"})
    assert directly[2:] == by_mlflow[2:] == ["m-1", None, None]
    assert get_prediction_context() is None
    with set_prediction_context(Context(request_id="r")):
        by_mlflow, directly = both_ways(schema, model, {"x": "a"})
    assert directly[2:] == by_mlflow[2:] == ["m-1", "r", None]


# --- every kind of implementation ------------------------------------------------------------------------------------


class WithContext(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        SEEN.extend([type(context).__name__, model_input, params])
        return [0] * len(model_input)


class WithoutParams(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        SEEN.extend([type(context).__name__, model_input])
        return [0] * len(model_input)


class WithoutContext(mlflow.pyfunc.PythonModel):
    def predict(self, model_input, params):
        SEEN.extend([model_input, params])
        return [0] * len(model_input)


class InputOnly(mlflow.pyfunc.PythonModel):
    def predict(self, model_input):
        SEEN.append(model_input)
        return [0] * len(model_input)


class Estimator(BaseEstimator):
    """What scikit-learn would have fitted."""

    def predict(self, data):
        SEEN.append(data)
        return np.zeros(len(data))


class AnyParams:
    """An implementation that takes no params by that name."""

    def predict(self, data, **params):
        SEEN.extend([data, params])
        return [0] * len(data)


def _load_pyfunc(path):
    return AnyParams()


FROM_CODE = """
    import sys
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Told(PythonModel):
        def predict(self, context, model_input, params=None):
            sys.modules["tests.test_direct"].SEEN.extend([model_input, params])
            return [0] * len(model_input)

    mlflow.models.set_model(Told())
"""


def save(path, kind, signature):
    if isinstance(kind, type) and issubclass(kind, BaseEstimator):
        mlflow.sklearn.save_model(kind(), path, signature=signature, pip_requirements=[], serialization_format="pickle")
    elif kind == "loader module":
        mlflow.pyfunc.save_model(path, loader_module=__name__, signature=signature, pip_requirements=[])
    elif kind == "from code":
        file = path.parent / "told.py"
        file.write_text(textwrap.dedent(FROM_CODE))
        mlflow.pyfunc.save_model(path, python_model=str(file), signature=signature, pip_requirements=[])
    else:
        mlflow.pyfunc.save_model(path, python_model=kind(), signature=signature, pip_requirements=[])


@pytest.mark.parametrize("params", [None, ParamSchema([ParamSpec("t", "double", 0.5), ParamSpec("n", "long", 3)])])
@pytest.mark.parametrize(
    "kind", [WithContext, WithoutParams, WithoutContext, InputOnly, Estimator, "loader module", "from code"]
)
def test_every_kind_of_model_is_called_as_by_mlflow(tmp_path, kind, params):
    assert sys.modules["tests.test_direct"].SEEN is SEEN
    signature = ModelSignature(inputs=Schema([ColSpec("string", "s"), ColSpec("double", "d")]), params=params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tmp_path / "model", kind, signature)
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert is_direct(model)
    schema = RequestSchema(model.metadata.signature)
    rows = {"inputs": [{"s": "a", "d": 1}, {"s": None, "d": None}]}
    for body in (rows, rows | {"params": {"t": 1}}) if params else (rows,):
        by_mlflow, directly = both_ways(schema, model, body)
        assert by_mlflow
        assert_identical(directly, by_mlflow)


def test_an_implementation_with_another_method_is_called_by_it():
    schema, model = served([ColSpec("string", "x")])
    flavors = {"python_function": {"loader_module": "none", "predict_fn": "guess"}}
    model.metadata.flavors = flavors

    class Guesses:
        def guess(self, data, params=None):
            return ["guessed"] * len(data)

    other = PyFuncModel(model.metadata, Guesses(), predict_fn="guess")
    data = schema.inputs.data(schema.check({"x": "a"}).rows)
    assert is_direct(other)
    assert shortest_way(other)(data, None) == other.predict(data) == ["guessed"]


def test_params_that_mlflow_refuses_are_refused():
    _, model = served([ColSpec("string", "x")], PARAMS)
    with pytest.raises(MlflowException):
        shortest_way(model)(None, {"n": "many"})


def test_mlflow_still_keeps_the_implementation_where_we_find_it():
    implementation = Keeps()
    _, model = served([ColSpec("string", "x")], None, implementation)
    assert model._model_impl is implementation
