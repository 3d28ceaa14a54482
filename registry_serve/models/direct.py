"""The short way into a pyfunc: to the model's own ``predict``, without MLflow's second check of the input.

``PyFuncModel.predict`` enforces the signature, which for one row costs more than many a model. What requests were
checked against is that same signature, and the frames and arrays made of them have exactly its dtypes; for plain
columns and numeric tensors MLflow's enforcement hands them on unchanged, so it can be left out. Everything else takes
MLflow's way: types whose values MLflow converts one by one (arrays, objects, maps, any), type hints, signatures whose
columns may all be absent, models with dependencies that MLflow announces to its tracing.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.context import Context, get_prediction_context, set_prediction_context
from mlflow.types import Schema
from mlflow.types.schema import DataType, ParamSpec, TensorSpec

Predict = Callable[[Any, dict[str, Any] | None], Any]

_log = logging.getLogger(__name__)


def shortest_way(model: PyFuncModel) -> Predict:
    """Return what answers as ``model.predict`` does, given data that ``RequestSchema`` made for its signature."""
    return _Direct(model) if _is_handed_on_unchanged(model) else model.predict


def _is_handed_on_unchanged(model: PyFuncModel) -> bool:
    metadata = model.metadata
    if type(model) is not PyFuncModel or metadata.signature is None or _is_hinted(metadata):
        return False
    if "dependencies_schemas" in (metadata.metadata or {}):
        return False
    inputs = metadata.signature.inputs
    return inputs is None or (_is_numeric(inputs) if inputs.is_tensor_spec() else _is_plain(inputs))


def _is_hinted(metadata: Model) -> bool:
    written = metadata.to_dict()
    return bool(written.get("is_signature_from_type_hint") or written.get("type_hint_from_example"))


def _is_numeric(inputs: Schema) -> bool:
    return all(isinstance(spec, TensorSpec) and np.dtype(spec.type).kind in "biuf" for spec in inputs.inputs)


def _is_plain(inputs: Schema) -> bool:
    names = [column.name for column in inputs.inputs if column.name is not None]
    return (
        all(isinstance(column.type, DataType) for column in inputs.inputs)
        and any(column.required is not False for column in inputs.inputs)  # without a column MLflow forgets the rows
        and len(set(names)) == len(names)
    )


class _Direct:
    """Calls the implementation behind a pyfunc, with what ``PyFuncModel.predict`` does besides enforcing columns."""

    def __init__(self, model: PyFuncModel) -> None:
        flavor = model.metadata.flavors["python_function"]
        # MLflow has no public name for it; a test fails when it moves.
        implementation = model._model_impl
        self._predict = getattr(implementation, flavor.get("predict_fn", "predict"))
        self._model_id = model.model_id
        params = model.metadata.signature.params
        self._specs: list[ParamSpec] | None = None if params is None else list(params.params)
        taken = inspect.signature(self._predict).parameters.get("params")
        self._takes_params = taken is not None and taken.kind is not inspect.Parameter.VAR_KEYWORD
        if self._specs and not self._takes_params:
            _log.warning("The model's predict takes no params, so those of its signature have no effect.")

    def __call__(self, data: Any, params: dict[str, Any] | None) -> Any:
        context = get_prediction_context() or Context()
        with set_prediction_context(context):
            if self._model_id:
                context.model_id = self._model_id
            if not self._takes_params:
                return self._predict(data)
            return self._predict(data, params=self._with_defaults(params))

    def _with_defaults(self, given: dict[str, Any] | None) -> dict[str, Any] | None:
        if self._specs is None:
            return given
        params = dict(given or {})
        for spec in self._specs:
            if spec.name in params:
                params[spec.name] = ParamSpec.validate_param_spec(params[spec.name], spec)
            else:
                params[spec.name] = spec.default
        return params
