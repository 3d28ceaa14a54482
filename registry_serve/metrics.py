"""What a replica does, as Ray metrics, which Ray exports for Prometheus with the application, deployment and replica.

| metric                           | kind    | tags                | what                                            |
|----------------------------------|---------|---------------------|-------------------------------------------------|
| ``registry_serve_version``       | gauge   | ``version, state``  | 1 for the state that the version is in, else 0  |
| ``registry_serve_requests``      | counter |                     | requests, also those that were refused          |
| ``registry_serve_errors``        | counter | ``code``            | those that ended in an error, by its code       |
| ``registry_serve_loads``         | counter |                     | versions loaded                                 |
| ``registry_serve_evictions``     | counter |                     | versions unloaded to make room, or idle         |
| ``registry_serve_calls``         | counter |                     | calls of ``predict``; one answers many requests |
| ``registry_serve_pending``       | gauge   |                     | requests being answered                         |
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.serve import metrics

from registry_serve.dataplane import DataPlane
from registry_serve.leases import VersionState
from registry_serve.registry import VersionKey

#: Counting in Ray costs more than a small model: the data plane counts, and its counts are read so often.
PUBLISHED_EVERY_S = 5.0


# Ray annotates a tuple of one name, and takes any number of them.
_VERSION_TAGS: Any = ("version", "state")


class Metrics:
    """Publishes a data plane's counts, and the states of its versions as they change. Make it inside a replica."""

    def __init__(self) -> None:
        self._version = metrics.Gauge("registry_serve_version", "State of a version.", tag_keys=_VERSION_TAGS)
        self._pending = metrics.Gauge("registry_serve_pending", "Requests being answered.")
        self._counters = {
            name: metrics.Counter(f"registry_serve_{name}", description)
            for name, description in {
                "requests": "Requests, also those that were refused.",
                "loads": "Loads of versions, also those that failed.",
                "evictions": "Versions unloaded.",
                "calls": "Calls of predict.",
            }.items()
        }
        self._errors = metrics.Counter("registry_serve_errors", "Requests that ended in an error.", ("code",))
        self._published: dict[tuple[str, str], int] = {}

    def version_changed(self, key: VersionKey, state: VersionState) -> None:
        """Publish the state of a version."""
        for each in VersionState:
            self._version.set(int(each is state), {"version": key.number, "state": each.value})

    async def publish(self, plane: DataPlane) -> None:
        """Publish the counts of a data plane, again and again, until cancelled."""
        while True:
            await asyncio.sleep(PUBLISHED_EVERY_S)
            status = plane.status()
            self._pending.set(status["pending_requests"])
            for name, counter in self._counters.items():
                self._add(counter, name, status[name])
            for code, count in status["errors"].items():
                self._add(self._errors, "errors", count, {"code": code})

    def _add(self, counter: metrics.Counter, name: str, count: int, tags: Mapping[str, str] | None = None) -> None:
        which = (name, "".join((tags or {}).values()))
        new = count - self._published.get(which, 0)
        self._published[which] = count
        if new > 0:
            counter.inc(new, dict(tags or {}))
