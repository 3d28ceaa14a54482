"""From what a client sent to one version of one model."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from registry_serve.errors import LoadFailed, RegistryUnavailable, VersionForbidden, VersionNotFound
from registry_serve.policies import RegistryAddress, VersionPolicy
from registry_serve.registry.lookups import MOST_ANSWERS, Lookups
from registry_serve.registry.records import ModelVersion, VersionSummary, available_references
from registry_serve.registry.references import Reference, is_blank, parse_reference

#: How long the card of a registration is believed: only ``set_signature`` on the logged model behind it changes a
#: card, which is rare, and reading one takes several requests to the artifact store.
CARD_FRESH_S = 60.0
#: Errors repeat what was asked for, but not a header of any length.
_MOST_SHOWN = 100


class Versions(Protocol):
    """What a resolver asks, of ``Registry`` or of what stands for it in tests."""

    def version(
        self,
        model: str,
        number: str,
        *,
        known: ModelVersion | None = None,
        policy: VersionPolicy = ...,
        default: ModelVersion | None = None,
    ) -> ModelVersion:
        """Return one version with its card."""

    def number_of(self, model: str, reference: Reference, *, policy: VersionPolicy = ...) -> str:
        """Return the number of the version that a reference means."""

    def summaries(self, model: str) -> list[VersionSummary]:
        """List all versions of a model, newest first."""


class Resolver:
    """Answers which version a request means.

    Answers of the registry are believed for ``address.fresh_for_s`` seconds, and the last ones for as long as it
    does not answer (see :class:`Lookups`). The default version is fixed and needs no registry at all.

    Args:
        registry: where versions are looked up.
        model: the registered model's name.
        default: the version meant by requests that name none. It is always allowed.
        policy: which other versions may be asked for.
        address: the time-out and how long answers are believed.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        registry: Versions,
        model: str,
        default: ModelVersion,
        policy: VersionPolicy,
        address: RegistryAddress,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep what it was given: nothing is asked, and no event loop is needed yet."""
        self.registry = registry
        self.model = model
        self.default = default
        self.policy = policy
        self._clock = clock
        self._cards = _Cards(registry, default, policy, clock)
        self._versions: Lookups[Reference, ModelVersion] = Lookups(self._look_up, address, clock)
        # While the registry has never answered, the default's number means what it meant when the class was built.
        self._versions.assume(Reference("number", default.number), default)
        self._lists: Lookups[str, list[VersionSummary]] = Lookups(registry.summaries, address, clock)

    async def resolve(self, text: str | None) -> ModelVersion:
        """Return the version that a client's text means.

        Args:
            text: the header's value or the path segment; blank or None is the default version.

        Raises:
            VersionNotFound: no such version or alias, or text that cannot name one.
            ModelNotFound: the registered model is gone.
            VersionForbidden: it exists, but the policy does not allow it.
            LoadFailed: it exists, but its artifacts do not.
            RegistryUnavailable: the registry does not answer, and never has for this reference.
        """
        if text is None or is_blank(text):
            return self.default
        shown = text.strip()[:_MOST_SHOWN]
        reference = parse_reference(text)
        if reference is None:
            raise VersionNotFound(self.model, shown, await self._available())
        try:
            version = await self._versions.get(reference)
        except VersionNotFound as error:
            raise VersionNotFound(self.model, shown, error.args[2]) from None
        if not self._is_allowed(version):
            raise VersionForbidden(self.model, version.number, str(self.policy))
        return version

    async def describe(self) -> list[VersionSummary]:
        """List all versions, newest first, with their aliases, as the registry had them some seconds ago.

        Raises:
            ModelNotFound: the registered model is gone.
            RegistryUnavailable: the registry does not answer, and has not before.
        """
        return list(await self._lists.get(self.model))

    @property
    def reachable(self) -> bool:
        """False while what ``describe`` returns is only what the registry said before it stopped answering."""
        return self._lists.answered(self.model)

    async def aclose(self) -> None:
        """Stop asking; whoever still waits gets ``Draining``."""
        await self._versions.aclose()
        await self._lists.aclose()

    def _is_allowed(self, version: ModelVersion) -> bool:
        # The number alone would let a model pass that was made again under the same name.
        is_default = self.default.is_registration(version.model, version.number, version.created)
        return is_default or self.policy.allows(version.number, version.aliases)

    async def _available(self) -> tuple[str, ...]:
        """List what a client could have asked for; nothing while the registry does not answer."""
        try:
            return available_references(await self.describe(), self.policy)
        except RegistryUnavailable:
            return ()

    def _look_up(self, reference: Reference) -> ModelVersion:
        """Ask the registry. Blocking: runs in a thread of the lookups."""
        return self._cards.version(self.registry.number_of(self.model, reference, policy=self.policy))


class _Cards:
    """Versions by number, whose cards are read again only once in a while. Used from several threads."""

    def __init__(
        self, registry: Versions, default: ModelVersion, policy: VersionPolicy, clock: Callable[[], float]
    ) -> None:
        self._registry = registry
        self._default = default
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, ModelVersion]] = OrderedDict()
        self.keep(default, read_at=float("-inf"))

    def keep(self, version: ModelVersion, read_at: float) -> None:
        with self._lock:
            self._kept[version.number] = (read_at, version)
            self._kept.move_to_end(version.number)
            while len(self._kept) > MOST_ANSWERS:
                self._kept.popitem(last=False)

    def version(self, number: str) -> ModelVersion:
        """Ask for a version; its card is read too, unless it was within the last minute."""
        with self._lock:
            read_at, known = self._kept.get(number, (float("-inf"), None))
        now = self._clock()
        fresh = now - read_at < CARD_FRESH_S
        try:
            version = self._ask(number, known if fresh else None)
        except LoadFailed:
            # Artifacts that vanish do not stop a model that is loaded: the same registration keeps its card.
            if known is None or fresh:
                raise
            version = self._ask(number, known)
        taken_over = known is not None and version.card is known.card
        self.keep(version, read_at if fresh and taken_over else now)
        return version

    def _ask(self, number: str, known: ModelVersion | None) -> ModelVersion:
        default = self._default
        return self._registry.version(default.model, number, known=known, policy=self._policy, default=default)
