"""HandlerSchema: what the requests of a handler look like."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from registry_serve.errors import InvalidRequest
from registry_serve.handlers.annotations import annotations_of
from registry_serve.handlers.calls import takes_body
from registry_serve.signature import AnswerInvalid, Place, Request, decode, fault, located, plain

_INPUT_KEYS = ("inputs", "input_strings")
_PARAMETERS = "parameters"
#: Requests with longer parameters are not compared with others.
_LONGEST_KEY = 10_000
_MOST_FAULTS = 1000
#: What is said otherwise than pydantic says it: it would quote the value, or speak of its own models.
_SENTENCES = {
    "missing": "is required",
    "extra_forbidden": "is unknown",
    "union_tag_invalid": "is of none of the kinds that are known",
    "union_tag_not_found": "does not say of which kind it is",
}


class HandlerSchema:
    """The requests of one handler: inputs, and settings for all of them.

    Attributes:
        takes_body: the handler is of the older form, which gets one request's whole body.
        annotations: what the handler says about its values.
    """

    def __init__(self, handler: type, name: str) -> None:
        self.takes_body = takes_body(handler, name)
        self.annotations = annotations_of(handler, takes_body=self.takes_body)

    def parse(self, body: bytes) -> Request:
        """Parse and check a body.

        Raises:
            MalformedJSON: the body is not JSON.
            InvalidRequest: it is no request.
        """
        return self.check(decode(body))

    def check(self, value: Any) -> Request:
        """Check a decoded body: ``{"inputs": [...], "parameters": {...}}``, and the forms that older clients send.

        ``inputs`` may be a single value, and is called ``input_strings`` by some; settings may stand beside it.

        Raises:
            InvalidRequest: it is no request.
        """
        if not isinstance(value, dict):
            raise fault((), 'must be an object {"inputs": [...]}')
        if self.takes_body:
            if "self" in value:
                raise fault(("self",), "is no name that a handler can be given")
            return Request([value], None, 1)
        return self.check_inputs(*inputs_and_parameters(value))

    def check_call(self, rows: Any, params: Mapping[str, Any] | None = None) -> Request:
        """Check inputs and parameters that came apart, from a Python caller.

        Raises:
            InvalidRequest: they are no request.
        """
        if self.takes_body:
            return self.check(rows)
        return self.check_inputs(rows if isinstance(rows, list) else [rows], params or {})

    def check_inputs(self, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Request:
        """Check inputs, and settings for all of them, against what the handler's annotations say.

        Raises:
            InvalidRequest: there is no input, or one does not fit.
        """
        if not inputs:
            raise fault(("inputs",), "must hold at least one input")
        annotations, wrong = self.annotations, []
        rows: list[Any] = []
        for place, each in enumerate(inputs):
            try:
                rows.append(_checked(annotations.input, each, ("inputs", place)))
            except InvalidRequest as error:
                wrong.append(error)
                if len(wrong) == InvalidRequest.MOST_ERRORS:
                    raise InvalidRequest.together(wrong, complete=False) from None
        given: Any = dict(parameters)
        try:
            given = _checked(annotations.parameters, given, (_PARAMETERS,))
        except InvalidRequest as error:
            wrong.append(error)
        if wrong:
            raise InvalidRequest.together(wrong)
        return Request(rows, given, len(rows), group=_key(parameters))

    def group(self, request: Request) -> Hashable | None:
        """Return a key: requests with equal parameters may share a call, the bodies of the older form never."""
        return request.group

    def merge(self, requests: Sequence[Request]) -> Request:
        """Return one request with the inputs of several, in their order."""
        rows = [row for request in requests for row in request.rows]
        return Request(rows, requests[0].params, len(rows), group=requests[0].group)

    def data(self, request: Request) -> Any:
        """Return the inputs, or the body for a handler of the older form."""
        return request.rows[0] if self.takes_body else request.rows

    def answer(self, prediction: Any, count: int) -> list[Any]:
        """Turn a handler's outputs into plain JSON values; bytes are text.

        Raises:
            AnswerInvalid: it did not answer with one output for each input.
        """
        answered = plain(_decoded(prediction))
        if self.takes_body:
            return answered if isinstance(answered, list) else [answered]
        if not isinstance(answered, list):
            raise AnswerInvalid(f"answered with no list of outputs, but a value of type {type(prediction).__name__}")
        if len(answered) != count:
            raise AnswerInvalid(f"answered with {len(answered)} outputs for {count} inputs")
        return answered


def inputs_and_parameters(body: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Take a body apart: its inputs, and the settings for all of them.

    Raises:
        InvalidRequest: it has no inputs, or has them twice.
    """
    named = [key for key in _INPUT_KEYS if key in body]
    if not named:
        raise fault(("inputs",), "is required")
    if len(named) > 1:
        raise fault(("input_strings",), "is another name of 'inputs': send one of them")
    inputs = body[named[0]]
    if inputs is None:
        raise fault((named[0],), "must be a list of inputs, or one input")
    parameters = body.get(_PARAMETERS)
    if parameters is not None and not isinstance(parameters, dict):
        raise fault((_PARAMETERS,), "must be an object")
    beside = {key: value for key, value in body.items() if key not in (*named, _PARAMETERS)}
    twice = beside.keys() & (parameters or {}).keys()
    if twice:
        raise fault((min(twice),), "is given twice, also in 'parameters'")
    return inputs if isinstance(inputs, list) else [inputs], {**(parameters or {}), **beside}


def _key(parameters: Mapping[str, Any]) -> str | None:
    """Return a text that equal parameters share; None where they are too long to be compared, or no JSON."""
    try:
        key = json.dumps(parameters, sort_keys=True)
    except (TypeError, ValueError):
        return None
    return key if len(key) <= _LONGEST_KEY else None


def _checked(adapter: TypeAdapter[Any] | None, value: Any, place: Place) -> Any:
    if adapter is None:
        return value
    try:
        # As JSON: a strict check of Python values would take no string for a date.
        return adapter.validate_json(to_json(value), strict=True)
    except ValidationError as error:
        if error.error_count() > _MOST_FAULTS:  # telling them all would take seconds
            raise InvalidRequest([located(place, "does not fit, in very many places")], None) from None
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest([located((*place, *each["loc"]), _sentence(each)) for each in faults]) from None


def _sentence(error: ErrorDetails) -> str:
    """Turn what pydantic says, 'Input should be a valid string', into what follows a place."""
    said = _SENTENCES.get(error["type"])
    return said or error["msg"].replace("Input should", "must").rstrip(".")


def _decoded(value: Any) -> Any:
    """Make text of the bytes in a value."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    if isinstance(value, Mapping):
        return {_decoded(key): _decoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_decoded(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        return _decoded(value.tolist())
    return value
