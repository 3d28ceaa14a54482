"""How a version is loaded: in this process or in one of its own, and with which packages."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from registry_serve.errors import CodeConflict, EnvironmentConflict, LoadFailed
from registry_serve.models import LoadedModel
from registry_serve.models.attempts import Attempts
from registry_serve.models.environment import Difference, Environment, compared
from registry_serve.models.language import load_language_model, obstacle
from registry_serve.models.pyfunc import load_pyfunc
from registry_serve.policies import LoadPolicy
from registry_serve.registry import ModelVersion, VersionKey

Isolate = Callable[[ModelVersion, Path, Sequence[str]], LoadedModel]

_KNOWN_VERSIONS = 512

logger = logging.getLogger(__name__)


@dataclass
class _Known:
    """What was found out about a version.

    Attributes:
        environment: its requirements, compared with what is installed.
        isolated: whether it ran in a process of its own when it was loaded last; None if it never was.
    """

    environment: Environment
    isolated: bool | None = None


class Loader:
    """Loads versions, and remembers what it found out about their environments.

    Args:
        policy: what to do with a version that asks for other packages or brings clashing modules.
        isolate: loads a version in a process of its own, when the policy wants one; what it is given last are the
            requirements to install there, none for the environment of this process.
        attempts: knows which versions have ended processes that loaded them.
        default: a version that is not held to have done so: a replica that was killed while it started would else
            come back with its default in another process.
    """

    def __init__(
        self, policy: LoadPolicy, isolate: Isolate, attempts: Attempts, default: VersionKey | None = None
    ) -> None:
        self._policy = policy
        self._isolate = isolate
        self._attempts = attempts
        self._default = default
        self._known: OrderedDict[VersionKey, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, version: ModelVersion, directory: Path) -> LoadedModel:
        """Load a version from a local copy of its artifacts. Blocks; call it from a worker thread.

        Args:
            version: whose artifacts they are.
            directory: holds the ``MLmodel`` file.

        Raises:
            EnvironmentConflict: it asks for other packages than are installed, and the policy refuses that.
            CodeConflict: it brings modules that clash with another version's, and isolation is off.
            LoadFailed: anything else that goes wrong while it is loaded.
        """
        known = self._compare(version, directory)
        self._refuse(version, known.environment)
        model: LoadedModel
        if self._policy.environment == "isolate" and known.environment.packages:
            model, known.isolated = self._isolate(version, directory, known.environment.requirements), True
            return model
        if version.key != self._default and self._attempts.deadly(version.key):
            return self._load_suspect(version, directory, known)
        try:
            with self._attempts.noted(version.key):
                model, known.isolated = self._load_here(version, directory), False
        except CodeConflict as conflict:
            if not self._policy.isolation:
                raise
            module = conflict.given["module"]
            logger.info("Version %s of %s clashes in %r: it is isolated.", version.number, version.model, module)
            model, known.isolated = self._isolate(version, directory, ()), True
        return model

    def _load_here(self, version: ModelVersion, directory: Path) -> LoadedModel:
        if self._policy.engine is not None and version.card.generates:
            reason = obstacle(version, directory)
            if reason is None:
                return load_language_model(version, directory, self._policy.engine)
            logger.warning("Version %s of %s is called as a pyfunc: %s.", version.number, version.model, reason)
        return load_pyfunc(version, directory)

    def _load_suspect(self, version: ModelVersion, directory: Path, known: _Known) -> LoadedModel:
        """Load a version that has ended processes where it can end only its own."""
        if not self._policy.isolation:
            raise LoadFailed(version.model, version.number, "loading it has ended the server's process several times")
        logger.warning(
            "Loading version %s of %s has ended several processes: it is isolated.", version.number, version.model
        )
        model, known.isolated = self._isolate(version, directory, ()), True
        # It was innocent, or will show again that it is not.
        self._attempts.forget(version.key)
        return model

    def describe(self, key: VersionKey) -> Mapping[str, Any] | None:
        """Return what is known of a version's environment, ready for JSON; None before it was first loaded here.

        Returns:
            ``policy``; ``differences``, each a requirement and what is installed instead; ``not_checked``, requirements
            that cannot be compared; ``isolated``, whether the version runs in a process of its own, None if it never
            ran.
        """
        known = self._known.get(key)
        if known is None:
            return None
        return {"policy": self._policy.environment, "isolated": known.isolated, **known.environment.described()}

    def _compare(self, version: ModelVersion, directory: Path) -> _Known:
        """Compare a version's requirements, and warn of differences the first time."""
        environment = compared(directory)
        with self._lock:
            seen = version.key in self._known
            known = self._known.setdefault(version.key, _Known(environment))
            known.environment = environment
            if len(self._known) > _KNOWN_VERSIONS:
                self._known.popitem(last=False)
        if environment.differences and not seen and self._policy.environment == "warn":
            named = "; ".join(map(str, environment.differences))
            logger.warning("Version %s of %s asks for other packages: %s.", version.number, version.model, named)
        return known

    def _refuse(self, version: ModelVersion, environment: Environment) -> None:
        """Raise where the policy does not allow the differences, or a process of its own would not mend them."""
        differences: dict[str, tuple[Difference, ...]] = {
            "warn": (),
            "refuse": environment.differences,
            "isolate": () if environment.python is None else (environment.python,),
        }
        refused = differences[self._policy.environment]
        if refused:
            raise EnvironmentConflict(version.model, version.number, [asdict(each) for each in refused])
