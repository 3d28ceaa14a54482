"""Merging: which requests of a version may share one call of its model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from registry_serve.models.independence import dependence
from registry_serve.policies import BatchPolicy
from registry_serve.registry import ModelVersion
from registry_serve.signature import Request, Schema, example_body


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


def find_out(version: ModelVersion, schema: Schema, policy: BatchPolicy, predict: Callable[[Request], Any]) -> Merging:
    """Decide which requests of a version may share a call, by the policy or by a trial. Blocks.

    Args:
        version: which one.
        schema: its requests.
        policy: ``"auto"`` tries the version with its own input example.
        predict: answers a request with plain JSON values.
    """
    if policy.mode == "off":
        return Merging(frozenset(), "batching is switched off")
    if policy.mode == "on":
        return Merging(None)
    body = example_body(version.card.input_example, schema)
    if body is None:
        return Merging(frozenset(), "it has no input example to try it with")
    example = schema.check(body)
    # Requests with params that were not tried might make the rows depend on each other.
    tried = [example] if example.params is None else [Request(example.rows, None, example.count), example]
    reasons = {schema.group(each): dependence(schema, each, predict) for each in tried}
    groups = frozenset(group for group, reason in reasons.items() if reason is None)
    return Merging(groups, next(filter(None, reasons.values()), None))
