"""Merging: which requests of a version may share one call of its model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Merging:
    """Which requests of a version may share one call.

    Attributes:
        groups: those with these group keys; None for all.
        reason: why not all requests are merged; None where they are.
    """

    groups: frozenset[Hashable] | None
    reason: str | None = None

    def __str__(self) -> str:
        """Return it in words."""
        if self.reason is None:
            return "yes"
        return f"{'some' if self.groups else 'no'}, {self.reason}"

    def allows(self, group: Hashable | None) -> bool:
        """Say whether requests of a group may be merged."""
        return group is not None and (self.groups is None or group in self.groups)
