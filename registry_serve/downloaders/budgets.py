"""How many bytes the copies of a node may take."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from registry_serve.errors import ConfigurationError

#: A number of bytes such as ``20GiB``, ``500MB`` or ``1000000``.
BUDGET_VARIABLE = "REGISTRY_SERVE_ARTIFACTS_MAX_BYTES"

_A_SIZE = re.compile(r"\d+(\.\d+)?\s*[A-Za-z]*")  # pydantic alone would read "5.5.5GB" as five bytes


def budget_from_environment() -> int | None:
    """Return the bytes that ``$REGISTRY_SERVE_ARTIFACTS_MAX_BYTES`` allows, None where it is not set.

    Raises:
        ConfigurationError: it is no number of bytes.
    """
    text = os.environ.get(BUDGET_VARIABLE, "").strip()
    if not text:
        return None
    try:
        if not _A_SIZE.fullmatch(text):
            raise ValueError(text)
        return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, ValueError):
        raise ConfigurationError(
            f"{BUDGET_VARIABLE} must be a number of bytes such as 20GiB, 500MB or 1000000, not {text!r}."
        ) from None


def half_of_what_could_be_free(root: Path, used: int) -> int:
    """Return half of the bytes that would be free on the disk if there were no copies, the default budget.

    Args:
        root: where the copies are, or will be.
        used: bytes they take now.
    """
    existing = next(path for path in (root, *root.parents) if path.exists())
    return (shutil.disk_usage(existing).free + used) // 2
