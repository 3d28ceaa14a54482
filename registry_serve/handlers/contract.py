"""The contract and the only version of a handler, as the data plane asks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from registry_serve.errors import VersionNotFound
from registry_serve.handlers.schema import HandlerSchema
from registry_serve.policies import VersionPolicy
from registry_serve.registry import ModelCard, ModelVersion, VersionSummary, is_blank, parse_reference
from registry_serve.signature import Compatibility

_ONLY = "1"
_NOTHING_RECORDED = ModelCard(
    signature=None,
    from_type_hint=False,
    flavor=None,
    input_example=None,
    code_paths=False,
    from_code=False,
    streamable=False,
    size_bytes=None,
    mlflow_version=None,
)


def only_version(name: str, handler: str) -> ModelVersion:
    """Return the version that a handler counts as, under the name of its deployment."""
    identity = hashlib.sha256(handler.encode()).hexdigest()[:32]
    created = datetime.now(timezone.utc)
    return ModelVersion(name, _ONLY, identity, identity[:12], handler, (), created, _NOTHING_RECORDED)


class HandlerContract:
    """What the endpoint of a handler promises: the handler's own annotations.

    Attributes:
        default: the handler's only version.
        schema: its requests.
        compatibility: of no meaning here.
    """

    compatibility = Compatibility.EXACT

    def __init__(self, default: ModelVersion, schema: HandlerSchema) -> None:
        self.default = default
        self.schema = schema

    def schema_of(self, version: ModelVersion) -> HandlerSchema:
        """Return what its requests look like."""
        return self.schema

    def differences(self, version: ModelVersion) -> list[Mapping[str, Any]]:
        """Return nothing: there is no other version."""
        return []


class OnlyVersion:
    """Answers which version a request means where there is one.

    Attributes:
        default: that one.
        policy: allows it.
        reachable: there is no registry to reach.
    """

    policy = VersionPolicy()
    reachable = True

    def __init__(self, default: ModelVersion) -> None:
        self.default = default

    async def resolve(self, text: str | None) -> ModelVersion:
        """Return the version.

        Raises:
            VersionNotFound: another one was asked for.
        """
        if text is None or is_blank(text):
            return self.default
        reference = parse_reference(text)
        if reference is None or reference.name not in (_ONLY, "latest"):
            raise VersionNotFound(self.default.model, text.strip()[:100], (_ONLY,))
        return self.default

    async def describe(self) -> list[VersionSummary]:
        """List the version."""
        return [VersionSummary(_ONLY, (), self.default.created, True)]

    async def aclose(self) -> None:
        """Do nothing: nothing is under way."""
