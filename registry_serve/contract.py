"""The contract of a deployment: the default version's signature, and which versions keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry_serve.errors import ConfigurationError, SignatureMissing, SignatureUnsupported
from registry_serve.registry import ModelCard, ModelVersion
from registry_serve.signature import Compatibility, RequestSchema, differences

# MLflow's chat models and agents take one conversation: of a frame, they read the first row.
_ONE_REQUEST_AT_A_TIME = {f"mlflow.pyfunc.loaders.{name}" for name in ("chat_model", "chat_agent", "responses_agent")}


@dataclass(frozen=True)
class Contract:
    """What the endpoint promises, fixed when the deployment class is built; it travels inside the class.

    Attributes:
        default: the default version at that moment, with its signature.
        compatibility: how alike another version's signature must be.
    """

    default: ModelVersion
    compatibility: Compatibility = Compatibility.EXACT

    def __post_init__(self) -> None:
        """Refuse a default version without an API to promise.

        Raises:
            SignatureMissing: it was logged without a signature.
            SignatureUnsupported: a type of its signature has no JSON form.
            ConfigurationError: it has no ``python_function`` flavor, so it cannot be loaded.
        """
        if self.default.card.flavor is None:
            raise ConfigurationError(
                f"Version {self.default.number} of {self.default.model!r} has no python_function flavor."
            )
        self.schema_of(self.default)

    @staticmethod
    def schema_of(version: ModelVersion) -> RequestSchema:
        """Return what requests to a version look like, whether it keeps the contract or not.

        Raises:
            SignatureMissing: it was logged without a signature.
            SignatureUnsupported: a type of its signature has no JSON form.
        """
        card = version.card
        if card.signature is None:
            raise SignatureMissing(version.model, version.number)
        return RequestSchema(card.signature, from_type_hint=card.from_type_hint, one_row=_one_row(card))

    def differences(self, version: ModelVersion) -> list[Mapping[str, Any]]:
        """Return what breaks the contract in a version, ready for JSON; an empty list if nothing does."""
        ours, theirs = self.default.card, version.card
        if theirs.flavor is None:
            return [_whole("model", "has no python_function flavor, so it cannot be served")]
        if theirs.signature is None:
            return [_whole("inputs", "the version was logged without a signature")]
        try:
            self.schema_of(version)
        except SignatureUnsupported as error:
            return [_whole("inputs", str(error).rstrip("."))]
        assert ours.signature is not None
        found = differences(
            ours.signature,
            theirs.signature,
            self.compatibility,
            from_type_hint=(ours.from_type_hint, theirs.from_type_hint),
            one_row=(_one_row(ours), _one_row(theirs)),
        )
        return [difference.as_json() for difference in found]


def _one_row(card: ModelCard) -> bool:
    return card.flavor in _ONE_REQUEST_AT_A_TIME


def _whole(where: str, message: str) -> Mapping[str, Any]:
    return {"where": where, "column": None, "kind": "form", "expected": None, "found": None, "message": message}
