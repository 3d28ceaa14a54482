"""What a handler's annotations say about its requests and its answers.

A handler may say what it takes: an annotation ``list[T]`` on the list of requests, where ``T`` is a ``TypedDict`` with
members ``input`` and ``parameters``, and ``list[U]`` on what it returns. Requests are then checked against them, and
the documentation shows them. ``dict`` and ``Any`` say nothing.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

import typing_extensions
from pydantic import ConfigDict, FailFast, TypeAdapter

logger = logging.getLogger(__name__)

#: Of a list with a million wrong items, one is told.
_LISTS = (list, set, frozenset)
_REQUIREDNESS = (typing_extensions.NotRequired, typing_extensions.Required, typing_extensions.ReadOnly)


@dataclass(frozen=True)
class Annotations:
    """What is known of a handler's values; None where nothing is.

    Attributes:
        input: one input.
        parameters: the parameters of a request.
        output: one output.
    """

    input: TypeAdapter[Any] | None = None
    parameters: TypeAdapter[Any] | None = None
    output: TypeAdapter[Any] | None = None


def annotations_of(handler: type, *, takes_body: bool) -> Annotations:
    """Read the annotations of a handler's ``predict``; whatever cannot be read says nothing."""
    if takes_body:
        return Annotations()
    predict = handler.predict  # type: ignore[attr-defined]
    try:
        hints = typing.get_type_hints(predict, include_extras=True)
        names = [name for name in inspect.signature(predict).parameters if name not in ("self", "cls")]
        request = _item(hints.get(names[0]) if names else None)
        said = typing_extensions.is_typeddict(request)
        members = typing.get_type_hints(request, include_extras=True) if said else {}
        return Annotations(
            _adapter(members.get("input")), _adapter(members.get("parameters")), _adapter(_item(hints.get("return")))
        )
    except Exception as error:  # noqa: BLE001 - evaluating what somebody wrote may raise anything
        logger.warning("The annotations of %s.predict are not used: %s", handler.__name__, error)
        return Annotations()


def _item(annotation: Any) -> Any | None:
    """Return what a list is said to hold, if it is said."""
    arguments = typing.get_args(annotation)
    if len(arguments) != 1 or typing.get_origin(arguments[0]) is dict or arguments[0] is dict:
        return None
    return arguments[0]


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    if annotation is None or annotation is Any:
        return None
    adapter: TypeAdapter[Any] = TypeAdapter(_readable(annotation))
    adapter.json_schema()  # what has none is found here, and not by the documentation
    return adapter


def _readable(annotation: Any) -> Any:
    """Return a type with each ``TypedDict`` in it in the form that pydantic can read before Python 3.12."""
    if not typing_extensions.is_typeddict(annotation):
        arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
        readable = tuple(_readable(each) for each in arguments)
        if readable != arguments:
            annotation = typing.Union[readable] if origin is types.UnionType else origin[readable]  # noqa: UP007
        return Annotated[annotation, FailFast()] if origin in _LISTS else annotation
    members = typing.get_type_hints(annotation, include_extras=True)
    optional = annotation.__optional_keys__
    fields = {
        name: typing_extensions.NotRequired[_said(member)] if name in optional else _said(member)
        for name, member in members.items()
    }
    make: Any = typing_extensions.TypedDict
    made = make(annotation.__name__, fields)
    made.__pydantic_config__ = getattr(annotation, "__pydantic_config__", ConfigDict(extra="forbid"))
    return made


def _said(member: Any) -> Any:
    """Return the type of a member; whether it is required is known already."""
    while typing.get_origin(member) in _REQUIREDNESS:
        member = typing.get_args(member)[0]
    return _readable(member)
