"""The two ways in which handlers are called, told apart by the signature of ``predict``.

| form                              | is given                                                           |
|-----------------------------------|--------------------------------------------------------------------|
| ``predict(self, model_requests)`` | a list of ``{"input": ..., "parameters": {...}}``, whatever its name |
| ``predict(self, **inputs)``       | the members of one request's body as they came; the older form     |
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

from registry_serve.errors import HandlerInvalid
from registry_serve.handlers.interface import ModelHandlerInterface


class Handler(Protocol):
    """Anything that answers."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a batch, or the body of one request."""


def takes_body(handler: type, name: str) -> bool:
    """Say whether a handler is of the older form, which is called with one request's body.

    Raises:
        HandlerInvalid: it has no ``predict``, or one of neither form.
    """
    predict = getattr(handler, "predict", None)
    if not callable(predict):
        raise HandlerInvalid(name, f"the class {handler.__name__} has no method predict(self, model_requests)")
    if predict is ModelHandlerInterface.predict:
        raise HandlerInvalid(name, f"the class {handler.__name__} does not define predict(self, model_requests)")
    for method in ("predict", "predict_stream"):
        asked = getattr(handler, method, None)
        if inspect.iscoroutinefunction(asked) or inspect.isasyncgenfunction(asked):
            raise HandlerInvalid(name, f"{handler.__name__}.{method} is called in a thread: drop 'async'")
    # Bound like a method, so that a static or a class method counts the same.
    parameters = list(inspect.signature(predict).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    bound = inspect.isfunction(inspect.getattr_static(handler, "predict"))
    if bound and parameters and parameters[0].kind in positional:
        parameters = parameters[1:]
    several = inspect.Parameter.VAR_POSITIONAL
    required = [each for each in parameters if each.kind in positional and each.default is inspect.Parameter.empty]
    if len(required) > 1 or any(
        each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is inspect.Parameter.empty for each in parameters
    ):
        raise HandlerInvalid(name, f"{handler.__name__}.predict takes more than the list of model_requests")
    if any(each.kind in positional or each.kind is several for each in parameters):
        return False
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return True
    raise HandlerInvalid(name, f"{handler.__name__}.predict takes no argument for the list of model_requests")


def streams(handler: type) -> bool:
    """Say whether a handler can answer piece by piece."""
    return callable(getattr(handler, "predict_stream", None))


def answer_batch(handler: Handler, inputs: Sequence[Any], parameters: Mapping[str, Any] | None) -> Any:
    """Call a handler with a batch. Each request is a copy: handlers change what they are given."""
    return handler.predict([_request(each, parameters) for each in inputs])


def answer_body(handler: Handler, body: Mapping[str, Any]) -> Any:
    """Call a handler of the older form."""
    return handler.predict(**deepcopy(dict(body)))


def answer_piecewise(handler: Any, given: Any, parameters: Mapping[str, Any] | None, *, body: bool) -> Iterator[Any]:
    """Call a handler's ``predict_stream`` with one request, as keywords."""
    pieces: Iterator[Any] = handler.predict_stream(**(deepcopy(given) if body else _request(given, parameters)))
    return pieces


def _request(given: Any, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"input": deepcopy(given), "parameters": deepcopy(parameters) if parameters else {}}
