"""Known versions: each held against the contract once, and what its loads found out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry_serve.contract import Contract
from registry_serve.errors import SignatureConflict
from registry_serve.handlers import HandlerContract
from registry_serve.models.merging import Merging
from registry_serve.registry import ModelVersion, VersionKey
from registry_serve.signature import Schema

_MOST = 512


@dataclass
class Known:
    """A version held against the contract.

    Attributes:
        schema: its requests; None where it breaks the contract.
        differences: what breaks the contract.
        merging: what its last load found out about its requests.
    """

    schema: Schema | None
    differences: Sequence[Mapping[str, Any]]
    merging: Merging | None = None


class KnownVersions:
    """The versions that were asked for, the last some hundreds of them."""

    def __init__(self, contract: Contract | HandlerContract) -> None:
        self._contract = contract
        self._known: OrderedDict[VersionKey, Known] = OrderedDict()

    def schema(self, version: ModelVersion) -> Schema:
        """Return what requests to a version look like.

        Raises:
            SignatureConflict: it breaks the contract.
        """
        known = self._known.get(version.key)
        if known is None:
            differences = self._contract.differences(version)
            schema = None if differences else self._contract.schema_of(version)
            known = self._known[version.key] = Known(schema, differences)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(version.key)
        if known.schema is None:
            default = self._contract.default.number
            raise SignatureConflict(version.model, version.number, default, known.differences)
        return known.schema

    def merging(self, key: VersionKey) -> Merging | None:
        """Return what a version's last load found out; None where it was never loaded, or is forgotten."""
        known = self._known.get(key)
        return None if known is None else known.merging

    def found_out(self, key: VersionKey, merging: Merging) -> None:
        """Keep what a load, or the calls since, found out."""
        known = self._known.get(key)
        if known is not None:
            known.merging = merging
