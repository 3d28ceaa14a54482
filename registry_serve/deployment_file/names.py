"""Names of deployments, as RFC 1123 has labels: lower-case letters, digits, dashes."""

from __future__ import annotations

import re
from typing import Any

LONGEST = 63


def as_rfc1123(name: Any) -> Any:
    """Return the nearest valid name, empty where nothing of it is valid; what is no text comes back as it is."""
    if not isinstance(name, str):
        return name
    return re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")[:LONGEST].rstrip("-")
