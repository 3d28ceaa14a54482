"""The root of the tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class RegistryServeError(Exception):
    """The root of the tree. ``args`` are the values of ``fields``, in that order.

    Attributes:
        status: the HTTP status it is answered with.
        code: a stable word for programs and alerts.
        title: the same for people, equal for all errors of one class.
        retry_after: seconds after which trying again makes sense, sent as ``Retry-After``.
        fields: names of the arguments.
        sentence: what happened and what to do next, with places for the arguments.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None
    fields: ClassVar[tuple[str, ...]] = ("detail",)
    sentence: ClassVar[str] = "{detail}"

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name."""
        return dict(zip(self.fields, self.args, strict=False))

    @property
    def detail(self) -> str:
        """The sentence that a client reads."""
        return self.sentence.format(**self.given) if len(self.args) >= len(self.fields) else self.title

    @property
    def members(self) -> Mapping[str, Any]:
        """Extension members for the error's body (RFC 9457, section 3.2)."""
        return {}

    def __str__(self) -> str:
        """Return the detail."""
        return self.detail
