"""Which replicas serve a model, and what each of them has loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry_serve.cli.endpoint import Endpoint

#: How long one answer may take, and how long answers are asked for.
_TIMEOUT_S, _ALTOGETHER_S = 1.5, 2.0
#: Replicas answer in turn: after so many answers of known ones, there are no more.
_ANSWERS_OF_KNOWN_ONES = 4


@dataclass(frozen=True)
class Replicas:
    """What answers for a model at an address.

    Attributes:
        url: the address.
        loaded: the numbers of the versions that each replica has loaded, by the replica's id.
    """

    url: str
    loaded: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def having(self, number: str) -> list[str]:
        """Return the replicas that have a version loaded."""
        return sorted(replica for replica, numbers in self.loaded.items() if number in numbers)


def replicas_at(url: str, model: str, api_key_file: Path | None) -> Replicas:
    """Ask for the replicas of a model, for two seconds at the most; there are none where nothing answers.

    Raises:
        ConfigurationError: the address is none, or the keys cannot be read.
    """
    endpoint = Endpoint(url, api_key_file=api_key_file, timeout_s=_TIMEOUT_S)
    deadline = time.monotonic() + _ALTOGETHER_S
    loaded: dict[str, frozenset[str]] = {}
    known = 0
    while known < _ANSWERS_OF_KNOWN_ONES and time.monotonic() < deadline:
        told = endpoint.described()
        if not isinstance(told, dict) or told.get("name") != model:
            break
        replica = str((told.get("replica") or {}).get("id", ""))
        known = known + 1 if replica in loaded else 0
        loaded[replica] = _ready(told)
    return Replicas(url, loaded)


def _ready(told: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(each["version"]) for each in told.get("versions", ()) if each.get("state") == "ready")
