"""A mistake in a deployment file, and how it is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from registry_serve.deployment_file.secrets import is_secret, without_credentials

#: The way to a value: keys of mappings and indices of lists.
Path = tuple[str | int, ...]

_LONGEST_QUOTED = 40


class Fault(NamedTuple):
    """``says`` goes on where the key's path ends: ``must be an integer, not 'two'``."""

    path: Path
    says: str

    def sentence(self, path: Path) -> str:
        """Tell it of the key at ``path``, which is another one where an older key was used."""
        return f"{dotted(path) or 'the file'} {self.says}"


def dotted(path: Path) -> str:
    """Return ``env_variables[0].key``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{shown_key(step)}" for step in path).removeprefix(".")


def shown_key(key: str) -> str:
    """Return the key; without a value that has got into it, as into ``{password:abc}``, which lacks a space."""
    return re.sub(r"(?s)[:=\s].*", "...", str(key))


def nearest(key: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?``, or a full stop where no key is near."""
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def found(path: Path, value: Any) -> str:
    """Return ``, not X``: a short scalar as it is, the kind of anything else, nothing that could be a secret."""
    kind = _kind(value)
    if kind in ("a list", "a mapping", "empty"):
        return f", not {kind}"
    if path[:1] == ("env_variables",) or any(is_secret(step, value) for step in path if isinstance(step, str)):
        return ""
    if not isinstance(value, str):
        return f", not {str(value).lower()}"
    shown = without_credentials(value)
    return f", not {shown!r}" if len(shown) <= _LONGEST_QUOTED and "\n" not in shown else ""


def at(document: Any, path: Path) -> Any:
    """Return the value there, None where there is none."""
    for step in path:
        if isinstance(document, Mapping):
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            document = document[step]
        else:
            return None
    return document


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "empty" if value is None or value == "" else "a scalar"
