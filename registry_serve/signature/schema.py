"""The body of a request: bytes -> rows and params that fit one model version's signature."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import islice
from typing import Any

from mlflow.models import ModelSignature
from mlflow.types.schema import ParamSpec
from pydantic_core import SchemaValidator, core_schema, from_json

from registry_serve.errors import InvalidRequest, MalformedJSON
from registry_serve.signature.answers import answer
from registry_serve.signature.inputs import Inputs, NoInputs, Tensors, inputs_of
from registry_serve.signature.requests import Request
from registry_serve.signature.rows import NamedColumns, Place, check, fault, located
from registry_serve.signature.scalars import Form, Target
from registry_serve.signature.types import form_of, object_core

#: Params with longer lists or texts are not compared with those of other requests.
_LONG_PARAM = 1000
_POSITION = re.compile(r"(?P<reason>.*) at line (?P<line>\d+) column (?P<column>\d+)", re.DOTALL)


def decode(body: bytes) -> Any:
    """Parse JSON. NaN and Infinity are no JSON.

    Raises:
        MalformedJSON: with the position.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        found = _POSITION.fullmatch(str(error))
        if found is None:
            raise MalformedJSON("it cannot be read", 0, 0) from None
        raise MalformedJSON(found["reason"], int(found["line"]), int(found["column"])) from None


class RequestSchema:
    """What the requests of one model version look like.

    Args:
        signature: its signature.
        from_type_hint: whether MLflow made the signature from a type hint.
        one_row: the model answers the first row only, whatever else it is given, so more are refused.

    Raises:
        SignatureUnsupported: a type of the signature has no JSON form.
    """

    def __init__(self, signature: ModelSignature, *, from_type_hint: bool = False, one_row: bool = False) -> None:
        self.one_row = one_row
        self.inputs: Inputs = inputs_of(signature, from_type_hint=from_type_hint)
        self.outputs = signature.outputs
        self.params: list[ParamSpec] = list(signature.params.params) if signature.params else []
        clash = {"inputs", "params"} & set(self.inputs.column_names)
        self.inputs_key, self.params_key = ("$inputs", "$params") if clash else ("inputs", "params")
        self.row_json = self.inputs.row_json  # a type without a JSON form is found here, not by the first request
        self._params = SchemaValidator(self._params_form.core)

    def parse(self, body: bytes) -> Request:
        """Parse and check a body.

        Raises:
            MalformedJSON: the body is not JSON.
            InvalidRequest: it does not fit the signature.
        """
        return self.check(decode(body))

    def check(self, value: Any) -> Request:
        """Check a decoded body: rows alone, or the envelope ``{"inputs": rows, "params": {...}}``.

        Raises:
            InvalidRequest: it does not fit the signature.
        """
        if not self._is_envelope(value):
            if not self.inputs.bare:
                raise fault((), f'must be an object {{"{self._first_key}": ...}}')
            if isinstance(value, dict) and self.params and self.params_key in value:
                raise fault((self.params_key,), f'stands beside "{self.inputs_key}", not inside a row')
            return self._request(self.inputs.rows(value, ()), None, ())
        return self._open(value)

    def check_call(self, rows: Any, params: Mapping[str, Any] | None = None) -> Request:
        """Check rows and params that came apart, from a Python caller.

        Raises:
            InvalidRequest: they do not fit the signature.
        """
        envelope = {} if isinstance(self.inputs, NoInputs) and rows is None else {self.inputs_key: rows}
        if params is not None:
            envelope[self.params_key] = dict(params)
        return self._open(envelope)

    def check_inputs(self, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Request:
        """Check a list of inputs and settings for all of them; values alone belong to the only column there is.

        Raises:
            InvalidRequest: they do not fit the signature.
        """
        if isinstance(self.inputs, NamedColumns) and len(self.inputs.column_names) == 1:
            name = self.inputs.column_names[0]
            # Where the column itself holds objects, an object is a value of it and no row.
            holds_objects = "object" in self.row_json["properties"][name].get("type", "object")
            inputs = [each if isinstance(each, dict) and not holds_objects else {name: each} for each in inputs]
        if isinstance(self.inputs, NoInputs):
            raise fault(("inputs",), "cannot be sent: this model has params only, and is asked at /serve")
        # The arrays of all rows are one object.
        arrays = isinstance(self.inputs, Tensors) and len(inputs) == 1 and isinstance(inputs[0], dict)
        return self.check_call(inputs[0] if arrays else list(inputs), parameters or None)

    def data(self, request: Request) -> Any:
        """Return what the model's ``predict`` is given."""
        return self.inputs.data(request.rows)

    def answer(self, prediction: Any, count: int) -> Any:
        """Turn a prediction for so many rows into plain JSON values.

        Raises:
            TypeError, ValueError: it has no JSON form.
        """
        return answer(prediction, count, self.outputs)

    def group(self, request: Request) -> Hashable | None:
        """Return a key: the rows of requests with equal keys may be merged, those of a request with None never.

        In one call of ``predict`` they reach the model as each does alone: the same columns, dtypes and values, the
        same params. Whether the model answers each row by itself is another question, which no signature answers.
        """
        if self.one_row or not request.count:
            return None
        params = (request.params or {}).values()
        long = any(isinstance(value, list | str) and len(value) > _LONG_PARAM for value in params)
        rows = None if long else self.inputs.group(request.rows)
        if rows is None:
            return None
        # Params are plain Python values, which their repr tells apart where == does not: 1, 1.0 and True, 0.0 and -0.0.
        return rows, None if request.params is None else repr(request.params)

    def merge(self, requests: Sequence[Request]) -> Request:
        """Return one request with the rows of several, in their order. All of them have the same ``group``."""
        rows = self.inputs.merge([request.rows for request in requests])
        return Request(rows, deepcopy(requests[0].params), sum(request.count for request in requests))

    def _is_envelope(self, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        if isinstance(self.inputs, NoInputs):
            return True
        return self.inputs_key in value or value.keys() == {self.params_key}

    @property
    def _first_key(self) -> str:
        return self.params_key if isinstance(self.inputs, NoInputs) else self.inputs_key

    def _open(self, envelope: dict[str, Any]) -> Request:
        wrong: list[InvalidRequest] = []
        unknown = (key for key in envelope if key not in (self.inputs_key, self.params_key))
        message = f"is neither {self.inputs_key!r} nor {self.params_key!r}"
        faults = [located((key,), message) for key in islice(unknown, InvalidRequest.MOST_ERRORS)]
        if faults:
            wrong.append(InvalidRequest(faults, sum(1 for _ in unknown)))
        rows: list[Any] = []
        params: dict[str, Any] | None = None
        try:
            if self.inputs_key in envelope:
                rows = self.inputs.rows(envelope[self.inputs_key], (self.inputs_key,))
            elif not isinstance(self.inputs, NoInputs):
                raise fault((self.inputs_key,), "is required")
        except InvalidRequest as error:
            wrong.append(error)
        try:
            if self.params_key in envelope:
                params = check(self._params, envelope[self.params_key], (self.params_key,))
        except InvalidRequest as error:
            wrong.append(error)
        if wrong:
            raise InvalidRequest.together(wrong)
        return self._request(rows, params, (self.inputs_key,))

    def _request(self, rows: list[Any], params: dict[str, Any] | None, place: Place) -> Request:
        count = len(rows)
        if self.one_row and count != 1:
            raise fault(place, "must be one row: this model answers one request at a time")
        if isinstance(self.inputs, Tensors):
            first = next(iter(rows[0].values())) if isinstance(rows[0], dict) else rows[0]
            count = first.shape[0] if first.ndim else 1
        return Request(rows, params, count)

    @cached_property
    def _params_form(self) -> Form:
        fields, properties = {}, {}
        for spec in self.params:
            form = _param_form(spec)
            fields[spec.name] = core_schema.typed_dict_field(form.core, required=False)
            properties[spec.name] = form.json | {"default": _json_default(spec.default)}
        return Form(
            object_core(fields),
            {"type": "object", "properties": properties, "additionalProperties": False},
        )

    @property
    def params_json(self) -> dict[str, Any]:
        """The JSON Schema of the params, each with its default."""
        return self._params_form.json


def _param_form(spec: ParamSpec) -> Form:
    if spec.shape is None:
        return form_of(spec.dtype, Target.PYTHON, nullable=True)
    item = form_of(spec.dtype, Target.PYTHON, nullable=True)
    return Form(core_schema.list_schema(item.core, strict=True, fail_fast=True), {"type": "array", "items": item.json})


def _json_default(default: Any) -> Any:
    if hasattr(default, "tolist"):
        default = default.tolist()
    if isinstance(default, float) and default != default:
        return None
    if isinstance(default, (list, tuple)):
        return [_json_default(item) for item in default]
    return default.isoformat() if hasattr(default, "isoformat") else default
