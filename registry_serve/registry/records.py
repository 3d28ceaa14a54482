"""What the registry says about models and their versions. All records are immutable and can be pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from mlflow.models import ModelSignature

from registry_serve.policies import VersionPolicy

#: How many version numbers an error or a page names: the newest ones.
MOST_VERSIONS_NAMED = 10


class VersionKey(NamedTuple):
    """What makes two loaded models the same model.

    A name and a number are not enough: a registered model that is deleted and made again starts at version 1 once
    more, and the signature can be changed under a fixed version.

    Attributes:
        model: the registered model's name.
        number: the version, canonical.
        model_uuid: MLflow's identity of the logged model.
        revision: a short hash of the bytes of the ``MLmodel`` file.
    """

    model: str
    number: str
    model_uuid: str
    revision: str


@dataclass(frozen=True)
class ModelCard:
    """What a version's ``MLmodel`` file says: known without fetching any weights.

    Attributes:
        signature: MLflow's signature, or None where the model was logged without one.
        from_type_hint: the signature was read off the type hint of ``predict``; MLflow then validates rows by the
            hint and skips its own schema enforcement.
        flavor: the pyfunc loader module, e.g. ``mlflow.sklearn``; None where the model has no pyfunc flavor.
        input_example: the saved serving input, parsed from JSON, in the form of MLflow's scoring protocol: exactly
            one of ``dataframe_split``, ``dataframe_records``, ``instances``, ``inputs``, and perhaps ``params``.
            None where there is none, or where it is larger than 1 MiB.
        code_paths: the model brings Python modules of its own, which join ``sys.path`` when it is loaded.
        from_code: the model is a Python file that is run when it is loaded.
        streamable: the model can ``predict_stream``.
        size_bytes: the size of all its files, where MLflow recorded it.
        mlflow_version: the MLflow that logged it.
        generates: the model is a language model that answers a text with a text, and an engine can do so for it.
    """

    signature: ModelSignature | None
    from_type_hint: bool
    flavor: str | None
    input_example: Any | None
    code_paths: bool
    from_code: bool
    streamable: bool
    size_bytes: int | None
    mlflow_version: str | None
    generates: bool = False


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model, as the registry knew it at one moment.

    Attributes:
        model: the registered model's name.
        number: the version, canonical: ``"3"``.
        model_uuid: MLflow's identity of the logged model.
        revision: a short hash of the bytes of the ``MLmodel`` file; changes when ``set_signature`` changes it.
        source: where the artifacts are; with the tracking URI at hand they can be downloaded from there. It may
            name the registry's inner addresses, so it is for logs and not for clients.
        aliases: the aliases that point here, without ``@``, sorted.
        created: when the version was registered, in UTC.
        card: what its ``MLmodel`` file says.
    """

    model: str
    number: str
    model_uuid: str
    revision: str
    source: str
    aliases: tuple[str, ...]
    created: datetime
    card: ModelCard

    @property
    def key(self) -> VersionKey:
        """The identity under which caches and batches keep it."""
        return VersionKey(self.model, self.number, self.model_uuid, self.revision)

    def is_registration(self, model: str, number: str, created: datetime) -> bool:
        """Tell whether what the registry has under this name and number is still what it had for this record.

        A registration never changes; a model deleted and made again has versions registered at other moments.
        """
        return (self.model, self.number, self.created) == (model, number, created)


@dataclass(frozen=True)
class VersionSummary:
    """What a list of versions says about one of them.

    Attributes:
        number: the version, canonical.
        aliases: the aliases that point here, without ``@``, sorted.
        created: when it was registered, in UTC.
        ready: the registry has finished registering it.
    """

    number: str
    aliases: tuple[str, ...]
    created: datetime
    ready: bool


@dataclass(frozen=True)
class RegisteredModelSummary:
    """What a list of registered models says about one of them.

    Attributes:
        name: the model's name.
        tags: its tags.
        aliases: alias (without ``@``) to version number.
    """

    name: str
    tags: Mapping[str, str]
    aliases: Mapping[str, str]


def available_references(summaries: Iterable[VersionSummary], policy: VersionPolicy) -> tuple[str, ...]:
    """List the references that a client may ask for: the aliases, then the newest ten version numbers.

    Args:
        summaries: the versions, newest first.
        policy: versions that it does not allow are left out.
    """
    allowed = [each for each in summaries if each.ready and policy.allows(each.number, each.aliases)]
    aliases = sorted(alias for each in allowed for alias in each.aliases)
    return (*(f"@{alias}" for alias in aliases), *(each.number for each in allowed[:MOST_VERSIONS_NAMED]))
