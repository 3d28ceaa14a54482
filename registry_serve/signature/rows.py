"""Inputs that are made of rows: how one row is written, and many.

Used through ``registry_serve.signature.inputs``, which chooses the form for a signature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, ClassVar

from pydantic_core import SchemaValidator, ValidationError, core_schema

from registry_serve.errors import InvalidRequest
from registry_serve.signature.frames import Column, Frames, rows_without_whole_number
from registry_serve.signature.scalars import Form, Target
from registry_serve.signature.types import form_of, object_core

Place = tuple[str | int, ...]

_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not in the model's signature",
    "dict_type": "must be an object",
    "list_type": "must be an array",
    "tuple_type": "must be an array",
    "string_type": "must be a string",
}


# Rows are checked a thousand at a time: in between, other threads have their turn.
_CHUNK = 1000
_LONGEST_NAME = 100


def check(validator: SchemaValidator, value: Any, place: Place) -> Any:
    """Run a check; its errors come back at their place in the body, without the values.

    Raises:
        InvalidRequest: the value does not fit.
    """
    try:
        return validator.validate_python(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest(
            [located((*place, *fault["loc"]), _MESSAGES.get(fault["type"], fault["msg"])) for fault in faults]
        ) from None


def located(place: Place, message: str) -> Mapping[str, Any]:
    """Return one fault. A name that the caller made up is told, but not at any length."""
    return {
        "location": [step[:_LONGEST_NAME] if isinstance(step, str) else step for step in place],
        "message": message,
    }


def fault(place: Place, message: str) -> InvalidRequest:
    """Return the error for a single fault."""
    return InvalidRequest([located(place, message)])


def column_form(column: Column, target: Target = Target.COLUMN) -> Form:
    """Return the form of one column's values.

    ``PyFuncModel.predict`` takes a missing value in any column but whole numbers (and required arrays and objects),
    whether the column is required or not: ``required`` says that the column is there.
    """
    nullable = not column.required or (column.scalar and not column.cannot_be_missing)
    return form_of(column.type, target, nullable=nullable)


def _array_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": row}


class _Rows(ABC):
    """What the forms made of rows share: one row or many, each checked alike."""

    bare: ClassVar[bool] = True
    column_names: Sequence[str] = ()

    @property
    @abstractmethod
    def row_form(self) -> Form: ...

    @property
    @abstractmethod
    def frames(self) -> Frames: ...

    @abstractmethod
    def is_one_row(self, value: Any) -> bool: ...

    @cached_property
    def _one(self) -> SchemaValidator:
        return SchemaValidator(self.row_form.core)

    @cached_property
    def _many(self) -> SchemaValidator:
        return SchemaValidator(core_schema.list_schema(self.row_form.core, strict=True, fail_fast=True))

    @property
    def row_json(self) -> dict[str, Any]:
        return self.row_form.json

    def json(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [row, _array_of(row)]}

    def rows(self, value: Any, place: Place) -> list[Any]:
        if self.is_one_row(value):
            return [check(self._one, value, place)]
        if not isinstance(value, list):
            raise fault(place, "must be an array")
        return self._checked(value, place)

    def records(self, rows: list[Any]) -> list[Any]:
        """Return the rows as ``Frames`` reads them."""
        return rows

    def data(self, rows: list[Any]) -> Any:
        return self.frames.frame(self.records(rows))

    def group(self, rows: list[Any]) -> Hashable | None:
        return self.frames.group(self.records(rows))

    def merge(self, parts: Sequence[list[Any]]) -> list[Any]:
        rows = list(chain.from_iterable(parts))
        return deepcopy(rows) if self.frames.nested else rows

    def _checked(self, value: list[Any], place: Place) -> list[Any]:
        """Check many rows, until there are as many faults as an answer names."""
        rows: list[Any] = []
        wrong: list[InvalidRequest] = []
        named, start = 0, 0
        while start < len(value) and named < InvalidRequest.MOST_ERRORS:
            chunk = value[start : start + _CHUNK]
            try:
                checked = self._many.validate_python(chunk)
            except ValidationError as error:
                start += int(error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][0])
                wrong.append(self._faults(value[start], (*place, start)))
                named += len(wrong[-1].errors)
                start += 1
            else:
                start += len(chunk)
                if not wrong:
                    rows += checked
        if wrong:
            raise InvalidRequest.together(wrong, complete=start >= len(value))
        return rows

    def _faults(self, row: Any, place: Place) -> InvalidRequest:
        try:
            check(self._one, row, place)
        except InvalidRequest as error:
            return error
        raise AssertionError("a row that does not fit among others fits alone")


@dataclass(frozen=True)
class NamedColumns(_Rows):
    """A row is an object."""

    columns: tuple[Column, ...]

    @property
    def column_names(self) -> Sequence[str]:  # type: ignore[override]
        return [column.key for column in self.columns]

    @cached_property
    def row_form(self) -> Form:
        forms = {column.key: column_form(column) for column in self.columns}
        required = [column.key for column in self.columns if column.required]
        fields = {key: core_schema.typed_dict_field(form.core, required=key in required) for key, form in forms.items()}
        return Form(
            object_core(fields),
            {
                "type": "object",
                "properties": {key: form.json for key, form in forms.items()},
                "required": required,
                "additionalProperties": False,
            },
        )

    def is_one_row(self, value: Any) -> bool:
        return not isinstance(value, list)

    def rows(self, value: Any, place: Place) -> list[Mapping[str, Any]]:
        rows = super().rows(value, place)
        message = "must be given in all rows or in none: whole numbers cannot be missing in some"
        lacking = (
            located((*place, position, column.key), message)
            for column in self.columns
            if column.cannot_be_missing and not column.required and len(rows) > 1
            for position in rows_without_whole_number(column, rows)
        )
        faults = list(islice(lacking, InvalidRequest.MOST_ERRORS))
        if faults:
            raise InvalidRequest(faults, 0 if next(lacking, None) is None else None)
        return rows

    @cached_property
    def frames(self) -> Frames:
        return Frames(self.columns)


@dataclass(frozen=True)
class UnnamedColumn(_Rows):
    """A row is the value itself."""

    column: Column

    @cached_property
    def row_form(self) -> Form:
        return column_form(self.column)

    def is_one_row(self, value: Any) -> bool:
        return not isinstance(value, list)

    @cached_property
    def frames(self) -> Frames:
        return Frames([self.column], by_position=True)

    def records(self, rows: list[Any]) -> list[Any]:
        return [(row,) for row in rows]


@dataclass(frozen=True)
class UnnamedColumns(_Rows):
    """A row is an array, by position. Where a column holds arrays itself, a single row comes in a list as well."""

    columns: tuple[Column, ...]

    @cached_property
    def row_form(self) -> Form:
        forms = [column_form(column) for column in self.columns]
        return Form(
            core_schema.tuple_schema([form.core for form in forms], strict=False),
            {
                "type": "array",
                "prefixItems": [form.json for form in forms],
                "minItems": len(forms),
                "maxItems": len(forms),
            },
        )

    @cached_property
    def _all_scalar(self) -> bool:
        return all(column.scalar for column in self.columns)

    def is_one_row(self, value: Any) -> bool:
        return self._all_scalar and isinstance(value, list) and bool(value) and not isinstance(value[0], list)

    def json(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [row, _array_of(row)]} if self._all_scalar else _array_of(row)

    @cached_property
    def frames(self) -> Frames:
        return Frames(self.columns, by_position=True)


@dataclass(frozen=True)
class Values(_Rows):
    """A row is one value of a type that is itself an array or an object, so rows always come in a list."""

    column: Column
    from_type_hint: bool

    bare: ClassVar[bool] = False

    @cached_property
    def row_form(self) -> Form:
        return column_form(self.column, Target.PYTHON if self.from_type_hint else Target.COLUMN)

    def is_one_row(self, value: Any) -> bool:
        return False

    def json(self, row: dict[str, Any]) -> dict[str, Any]:
        return _array_of(row)

    @cached_property
    def frames(self) -> Frames:
        return Frames([self.column], by_position=True)

    def records(self, rows: list[Any]) -> list[Any]:
        return [(row,) for row in rows]

    def data(self, rows: list[Any]) -> Any:
        return rows if self.from_type_hint else super().data(rows)

    def group(self, rows: list[Any]) -> Hashable | None:
        return () if self.from_type_hint else super().group(rows)
