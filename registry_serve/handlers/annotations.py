"""What a handler's annotations say about its requests and its answers.

A handler may say what it takes: an annotation ``list[T]`` on the list of requests, where ``T`` has members ``input``
and ``parameters`` (a ``TypedDict``, a dataclass, a pydantic model), and ``list[U]`` on what it returns. Requests are
then checked against them, and the documentation shows them. ``dict`` and ``Any`` say nothing.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from dataclasses import dataclass
from typing import Any

import typing_extensions
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

logger = logging.getLogger(__name__)


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
        members = {} if request is None else typing.get_type_hints(request, include_extras=True)
        return Annotations(
            _adapter(members.get("input")), _adapter(members.get("parameters")), _adapter(_item(hints.get("return")))
        )
    except (NameError, TypeError, PydanticSchemaGenerationError, PydanticUserError) as error:
        logger.warning("The annotations of %s.predict are not used: %s", handler.__name__, error)
        return Annotations()


def _item(annotation: Any) -> Any | None:
    """Return what a list is said to hold, if it is said."""
    arguments = typing.get_args(annotation)
    if len(arguments) != 1 or typing.get_origin(arguments[0]) is dict or arguments[0] is dict:
        return None
    return arguments[0]


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    return None if annotation is None or annotation is Any else TypeAdapter(_readable(annotation))


def _readable(annotation: Any) -> Any:
    """Return a type with each ``TypedDict`` in it in the form that pydantic can read before Python 3.12."""
    if not typing_extensions.is_typeddict(annotation):
        arguments = typing.get_args(annotation)
        readable = tuple(_readable(each) for each in arguments)
        if readable == arguments:
            return annotation
        origin = typing.get_origin(annotation)
        return typing.Union[readable] if origin is types.UnionType else origin[readable]  # noqa: UP007
    members = typing.get_type_hints(annotation, include_extras=True)
    optional = annotation.__optional_keys__
    fields = {
        name: typing_extensions.NotRequired[_readable(member)] if name in optional else _readable(member)
        for name, member in members.items()
    }
    return typing_extensions.TypedDict(annotation.__name__, fields)  # type: ignore[operator]
