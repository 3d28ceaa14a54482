"""What a deployment file holds and nobody should see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from registry_serve.deployment_file.fields import DeploymentFile

MASK = "***"

_NAMED = r"(?i:key|token|secret|password|passwd|pass|pwd|credential|signature|sig|authorization|auth|bearer)s?"
_SECRET = re.compile(rf"{_NAMED}(?![a-z])")
_SECRET_AT_THE_END = re.compile(rf"(?!.*(?i:tokens)$).*{_NAMED}$")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s?#]*@")
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s&;,"']+)"""
_ASSIGNED = re.compile(rf"""([\w.-]*{_NAMED}["']?\s*[:=]\s*)(?:(?i:bearer|basic|token)\s+)?{_VALUE}""")
_OPTION = re.compile(rf"(--[\w-]*{_NAMED}\s+){_VALUE}")
_USER = r"""(?:"[^":]*:[^"]*"|'[^':]*:[^']*'|[^\s:"']+:\S*)"""
_USER_OPTION = re.compile(rf"(?<!\S)(-[A-Za-z]*[uU]\s*|--(?:proxy-)?user(?:\s+|=)){_USER}")
_LOGIN = re.compile(r"(\bwandb\s+login\s+)[^\n;&|]*[^\s;&|]")
#: A value in a shell's assignment: quotes, brackets and backslashes keep it together, and it may lack its last quote.
_WORD = r"""(?:"(?:\\.|[^"\\])*(?:"|\Z)|'[^']*(?:'|\Z)|\$?\([^()]*\)|`[^`]*`|\\.|[^\s;&|"'`\\])+"""
_VARIABLE = re.compile(rf"(?s)((?:\A|(?<=[\s;|(`])|(?<=&&))[A-Za-z_]\w*\+?=){_WORD}")


def masked(file: DeploymentFile) -> dict[str, Any]:
    """Return the file as it may be shown: ``***`` for every secret, ready for YAML and JSON.

    Secret are the values of ``env_variables``, of the variables that ``command`` sets, of keys that are named like
    secrets, what is assigned to such names inside texts, and who signs in with a URL or with an option.
    """
    shown: dict[str, Any] = _masked(file.model_dump(exclude_none=True))
    if file.command is not None:
        shown["command"] = without_credentials(_VARIABLE.sub(rf"\1{MASK}", file.command))
    return shown


def is_secret(key: str, value: Any) -> bool:
    """Say whether a key is named like a secret: ``api_key``, ``hfToken``; with a number, only ``pin_token``.

    Numbers are settings such as ``max_new_tokens`` and ``eos_token_id``, unless the secret's name comes last.
    """
    pattern = _SECRET_AT_THE_END if isinstance(value, (int, float)) else _SECRET
    return pattern.search(key) is not None


def without_credentials(text: str) -> str:
    """Return the text without who signs in with it, and without what it assigns to names of secrets."""
    for pattern in (_ASSIGNED, _OPTION, _USER_OPTION, _LOGIN):
        text = pattern.sub(rf"\1{MASK}", text)
    return _USER_IN_URL.sub("", text)


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        if {"key", "value"} <= value.keys():  # also where env_variables is misspelt
            return {**value, "value": MASK}
        return {
            key: MASK if is_secret(key, each) and each is not None else _masked(each) for key, each in value.items()
        }
    if isinstance(value, list):
        return [_masked(each) for each in value]
    return without_credentials(value) if isinstance(value, str) else value
