"""Settings as small value objects that validate themselves. All are immutable and travel inside a deployment.

| object        | says                                           | default                                     |
|---------------|------------------------------------------------|---------------------------------------------|
| CachePolicy   | how many versions a replica keeps loaded       | ``max_models=2``: the default and one more  |
| BatchPolicy   | when the rows of several requests go together  | ``mode="auto"``, ``max_batch_size=64``      |
| LoadPolicy    | what a version may differ in from the replica  | ``environment="warn"``, ``isolation=True``  |
| VersionPolicy | which versions a request may ask for           | ``allowed="all"``                           |
| Limits        | what one request may cost                      | 16 MiB, 60 s, 1000 pending                  |
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from registry_serve.errors import ConfigurationError


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ConfigurationError(complaint)


@dataclass(frozen=True)
class CachePolicy:
    """How many versions one replica keeps loaded, and how it loads them.

    Attributes:
        max_models: loaded versions, the pinned default included. Those that load or drain come on top, at most
            ``max_concurrent_loads`` of them; further loads wait.
        max_bytes: how much the loaded versions may take, by the size of their artifacts; None for any. What does not
            fit makes room for itself like a version beyond ``max_models``.
        idle_ttl_s: a version that nobody asked for in so many seconds is unloaded; None keeps it. The default version
            stays in any case.
        max_concurrent_loads: versions that load at the same time.
        retry_failed_after_s: how long a version that failed to load is refused before it is tried again; doubles
            with each further failure, up to ``retry_failed_at_most_s``.
        retry_failed_at_most_s: the longest such pause.
    """

    max_models: int = 2
    max_bytes: int | None = None
    idle_ttl_s: float | None = None
    max_concurrent_loads: int = 2
    retry_failed_after_s: float = 5.0
    retry_failed_at_most_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _require(self.max_models >= 1, f"max_models must be at least 1, not {self.max_models}.")
        _require(self.max_bytes is None or self.max_bytes > 0, "max_bytes must be greater than 0.")
        _require(self.idle_ttl_s is None or self.idle_ttl_s > 0, "idle_ttl_s must be greater than 0.")
        _require(self.max_concurrent_loads >= 1, "max_concurrent_loads must be at least 1.")
        _require(self.retry_failed_after_s >= 0, "retry_failed_after_s must not be negative.")
        _require(
            self.retry_failed_at_most_s >= self.retry_failed_after_s,
            "retry_failed_at_most_s must not be less than retry_failed_after_s.",
        )


@dataclass(frozen=True)
class BatchPolicy:
    """When the rows of several requests go to the model in one call.

    Attributes:
        mode: ``"auto"``: for a version that has shown, on its own input example, that it answers rows together as it
            does alone; ``"on"``: always; ``"off"``: never.
        max_batch_size: rows of one call. A single request with more rows is never cut.
        max_batch_bytes: size of the bodies that go together; None for any. A single larger request is never cut.
        max_wait_ms: how long a free model lets requests gather before it takes them. With 0 it takes what is there:
            batches then grow by themselves while it is busy.
        max_waiting: requests that may wait for one version; further ones get 429.
    """

    mode: Literal["auto", "on", "off"] = "auto"
    max_batch_size: int = 64
    max_batch_bytes: int | None = None
    max_wait_ms: float = 0.0
    max_waiting: int = 500

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _require(self.mode in ("auto", "on", "off"), f"batching must be 'auto', 'on' or 'off', not {self.mode!r}.")
        _require(self.max_batch_size >= 1, f"max_batch_size must be at least 1, not {self.max_batch_size}.")
        _require(self.max_batch_bytes is None or self.max_batch_bytes >= 1, "max_batch_bytes must be at least 1.")
        _require(self.max_wait_ms >= 0, "max_wait_ms must not be negative.")
        _require(self.max_waiting >= 1, "max_waiting must be at least 1.")


@dataclass(frozen=True)
class LoadPolicy:
    """How versions are loaded, and what happens to one that does not fit into the replica's process.

    Attributes:
        environment: for a version that was logged with other packages than are installed. ``"warn"`` says so and loads
            it, ``"refuse"`` does not load it, ``"isolate"`` installs its packages for a process of its own. MLflow
            itself stays the installed one.
        isolation: whether a version whose Python modules clash with another's gets a process of its own; otherwise it
            is refused.
        engine: what generates for language models of MLflow's transformers flavour: ``"auto"``, ``"continuous"`` or
            ``"static"``; None calls them as all other models.
    """

    environment: Literal["warn", "refuse", "isolate"] = "warn"
    isolation: bool = True
    engine: Literal["auto", "continuous", "static"] | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _require(
            self.environment in ("warn", "refuse", "isolate"),
            f"environment must be 'warn', 'refuse' or 'isolate', not {self.environment!r}.",
        )
        _require(
            self.engine in (None, "auto", "continuous", "static"),
            f"engine must be 'auto', 'continuous' or 'static', not {self.engine!r}.",
        )
        _require(self.isolation or self.environment != "isolate", "environment='isolate' needs isolation=True.")


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions a request may ask for. The default version is always allowed.

    A version chosen by a request is code that runs on the server: on a registry where many people may register,
    ``"aliased"`` keeps unreviewed versions out.

    Attributes:
        allowed: ``"all"``, ``"aliased"`` (versions that an alias points to), or the version numbers.
    """

    allowed: Literal["all", "aliased"] | frozenset[str] = "all"

    @classmethod
    def of(cls, allowed: str | int | Collection[str | int]) -> VersionPolicy:
        """Build one from what people write: ``"all"``, ``"aliased"``, ``[1, 2]`` or ``"1,2"``.

        Raises:
            ConfigurationError: a version that is no number.
        """
        if allowed in ("all", "aliased"):
            return cls("aliased" if allowed == "aliased" else "all")
        if isinstance(allowed, str):
            allowed = [part.strip() for part in allowed.split(",")]
        if isinstance(allowed, int):
            allowed = [allowed]
        for number in allowed:
            _require(
                re.fullmatch(r"[0-9]{1,10}", str(number)) is not None,
                f"versions must be 'all', 'aliased' or version numbers such as '1,2'; {str(number)!r} is neither.",
            )
        return cls(frozenset(str(int(number)) for number in allowed))

    def allows(self, number: str, aliases: Collection[str]) -> bool:
        """Say whether the version with this number and these aliases may be asked for."""
        if self.allowed == "all":
            return True
        if self.allowed == "aliased":
            return bool(aliases)
        return number in self.allowed

    def __str__(self) -> str:
        """Return what is allowed, in words."""
        if self.allowed == "all":
            return "all versions"
        if self.allowed == "aliased":
            return "versions with an alias"
        return "versions " + ", ".join(sorted(self.allowed, key=int))


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        max_body_bytes: larger bodies get 413.
        request_timeout_s: how long a caller waits for a prediction (504 after that), loading included (503); and how
            long its body may take to arrive (408).
        max_pending_requests: requests that one replica holds at a time; further ones get 429.
        cold_load_wait_s: how long a caller waits for a version that is not loaded yet, before 503; the load goes on.
            None waits as long as for anything else.
        stuck_after_s: a replica whose model has computed one call for so long (and longer than
            ``request_timeout_s``), or a load for ten times as long, reports itself unhealthy, so that Ray replaces it.
            None never does.
    """

    max_body_bytes: int = 16 * 2**20
    request_timeout_s: float = 60.0
    max_pending_requests: int = 1000
    cold_load_wait_s: float | None = None
    stuck_after_s: float | None = 300.0

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        for name in ("max_body_bytes", "request_timeout_s", "max_pending_requests"):
            value = getattr(self, name)
            _require(value > 0, f"{name} must be greater than 0, not {value}.")
        for name in ("cold_load_wait_s", "stuck_after_s"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be greater than 0, not {value}.")


@dataclass(frozen=True)
class RegistryAddress:
    """Where the registry is: absolute, so that it means the same on every replica.

    Attributes:
        tracking_uri: MLflow's tracking URI; artifacts are fetched through it.
        registry_uri: MLflow's registry URI, where it is another one.
        timeout_s: how long one call to the registry may take before it counts as unreachable.
        fresh_for_s: how long a resolved version or alias is believed without asking again.
    """

    tracking_uri: str
    registry_uri: str = field(default="")
    timeout_s: float = 10.0
    fresh_for_s: float = 5.0

    def __post_init__(self) -> None:
        """Use one address for both where only one is given."""
        _require(bool(self.tracking_uri), "tracking_uri must not be empty.")
        _require(self.timeout_s > 0 and self.fresh_for_s >= 0, "timeout_s must be positive, fresh_for_s not negative.")
        if not self.registry_uri:
            object.__setattr__(self, "registry_uri", self.tracking_uri)
