"""What a client may write to choose a version.

| written            | meaning                                                      |
|--------------------|--------------------------------------------------------------|
| ``3``, ``03``      | version 3 (at most ten ASCII digits)                         |
| ``latest``         | the highest version that is ready and allowed; ``@latest`` too |
| ``champion``       | the version that alias points to                             |
| ``@champion``      | the same; an alias made of digits needs its ``@``: ``@7``    |
| blank, or nothing  | the default version                                          |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# [0-9] and not \d, which takes the digits of every script; fullmatch and not $, which forgives a trailing newline.
_NUMBER = re.compile(r"[0-9]{1,10}")
_DIGITS = re.compile(r"[0-9]+")
_ALIAS = re.compile(r"@?([A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Reference:
    """A version as a client named it, in the one canonical spelling.

    Attributes:
        kind: how the version is named.
        name: the number without leading zeros, ``latest``, or the alias without its ``@``.
    """

    kind: Literal["number", "latest", "alias"]
    name: str

    def __str__(self) -> str:
        """Return a spelling that means the same reference again: ``3``, ``latest`` or ``@champion``."""
        return f"@{self.name}" if self.kind == "alias" else self.name


def is_blank(text: str | None) -> bool:
    """Say whether a client left the choice to us, which means the default version."""
    return text is None or not text.strip()


def parse_reference(text: str) -> Reference | None:
    """Read what a client wrote; surrounding white space is not part of it.

    Args:
        text: a header's value or a path segment, decoded. Blank text is no reference: see :func:`is_blank`.

    Returns:
        The reference, or None if the text cannot name a version: that is a 404 without asking the registry.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return Reference("number", str(int(text)))
    if _DIGITS.fullmatch(text):
        return None  # too long for a version, and an alias made of digits needs its "@"
    alias = _ALIAS.fullmatch(text)
    if alias is None:
        return None
    # MLflow reserves the alias "latest" for the same meaning.
    return Reference("latest", "latest") if alias[1] == "latest" else Reference("alias", alias[1])
