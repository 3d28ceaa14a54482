"""Asking an MLflow registry, and nothing else in this package does. Blocking; safe to use from several threads."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow.artifacts
from mlflow import MlflowClient

from registry_serve.downloaders import ArtifactCache, ModelFiles, local_directory, size_of
from registry_serve.errors import ConfigurationError, ModelNotFound, VersionForbidden, VersionNotFound
from registry_serve.policies import RegistryAddress, VersionPolicy
from registry_serve.registry.answers import NotInRegistry, asking, reading_artifacts
from registry_serve.registry.cards import MLMODEL, ArtifactsMissing, list_all_files, list_files, read_card
from registry_serve.registry.pages import pages
from registry_serve.registry.patience import patient_downloads
from registry_serve.registry.records import (
    ModelVersion,
    RegisteredModelSummary,
    VersionSummary,
    available_references,
)
from registry_serve.registry.references import Reference
from registry_serve.registry.store import FilesOfStore

_ALL = VersionPolicy()
#: MLflow keeps versions in a 32-bit column; asking a database for more is an error of the server.
_HIGHEST_NUMBER = 2**31 - 1
_LOGGED_MODEL = re.compile(r"models:/+(m-[^/]+)/?")
_OTHER_VERSION = re.compile(r"models:/+([^/]+)/([0-9]+)/?")


class Registry:
    """One MLflow registry, at an explicit address: MLflow's global URIs are neither read nor set.

    Args:
        address: where it is. Time-outs are MLflow's own: see ``make_http_impatient``.
        artifacts: where downloaded models are kept.
    """

    def __init__(self, address: RegistryAddress, artifacts: ArtifactCache | None = None) -> None:
        """Remember the address; the first question connects."""
        self.address = address
        self.artifacts = artifacts or ArtifactCache()
        self._lock = threading.Lock()
        self._connected: MlflowClient | None = None
        self._listed: dict[str, tuple[float, list[VersionSummary]]] = {}

    def models(self) -> list[RegisteredModelSummary]:
        """List all registered models, by name.

        Raises:
            RegistryUnavailable: it does not answer.
        """
        with asking("its registered models"):
            found = list(pages(self._client().search_registered_models))
        models = (RegisteredModelSummary(each.name, dict(each.tags), _aliases(each)) for each in found)
        return sorted(models, key=lambda model: model.name)

    def version(
        self,
        model: str,
        number: str,
        *,
        known: ModelVersion | None = None,
        policy: VersionPolicy = _ALL,
        default: ModelVersion | None = None,
    ) -> ModelVersion:
        """Return one version with its card. Reads metadata only, never weights.

        Args:
            model: the registered model's name.
            number: the version, canonical.
            known: an earlier record; its card is taken over if it is of the same registration.
            policy: which versions may be read, and which references an error names as available.
            default: allowed whatever the policy says, if it is still the same registration.

        Raises:
            ModelNotFound: there is no such model.
            VersionNotFound: there is no such version, or it is not ready.
            VersionForbidden: it exists, but the policy does not allow it; nothing of its artifacts was read.
            LoadFailed: the version exists, but its artifacts do not, or its ``MLmodel`` file is not readable.
            RegistryUnavailable: the registry or the artifact store does not answer.
        """
        found = self._registered_version(model, number, policy)
        aliases = tuple(sorted(found.aliases))
        created = _moment(found.creation_timestamp)
        is_default = default is not None and default.is_registration(model, number, created)
        if not is_default and not policy.allows(number, aliases):
            raise VersionForbidden(model, number, str(policy))
        if known is not None and known.is_registration(model, number, created):
            return replace(known, aliases=aliases)
        source = self._location(model, number)
        with reading_artifacts(model, number):
            card, model_uuid, revision = read_card(source, self.address.tracking_uri)
        # A model without an identity of its own is taken for new whenever it is registered.
        model_uuid = model_uuid or "r" + _short_hash(f"{source} {created.isoformat()}")
        return ModelVersion(model, number, model_uuid, revision, source, aliases, created, card)

    def number_of(self, model: str, reference: Reference, *, policy: VersionPolicy = _ALL) -> str:
        """Return the number of the version that a reference means; a number is returned as it is, unchecked.

        Args:
            model: the registered model's name.
            reference: a number, an alias, or ``latest``.
            policy: ``latest`` passes over versions that it does not allow.

        Raises:
            ModelNotFound: there is no such model.
            VersionNotFound: there is no such alias, or no version to be the latest.
            RegistryUnavailable: the registry does not answer.
        """
        if reference.kind == "number":
            return reference.name
        if reference.kind == "latest":
            return self.latest(model, policy.allows)
        try:
            with asking(f"alias {reference.name!r} of {model!r}"):
                found = self._client().get_model_version_by_alias(model, reference.name)
        except NotInRegistry:
            raise self._not_found(model, str(reference), policy) from None
        return str(found.version)

    def latest(self, model: str, allows: Callable[[str, Collection[str]], bool] = _ALL.allows) -> str:
        """Return the number of the highest version that is ready and allowed.

        Args:
            model: the registered model's name.
            allows: says of a number and its aliases whether the version may be chosen.

        Raises:
            ModelNotFound: there is no such model.
            VersionNotFound: no version is ready and allowed.
            RegistryUnavailable: the registry does not answer.
        """
        for each in self.summaries(model):
            if each.ready and allows(each.number, each.aliases):
                return each.number
        raise VersionNotFound(model, "latest", ())

    def summaries(self, model: str) -> list[VersionSummary]:
        """List all versions of a model, newest first.

        Raises:
            ModelNotFound: there is no such model.
            RegistryUnavailable: the registry does not answer.
        """
        client = self._client()
        try:
            with asking(f"the versions of {model!r}"):
                # The search leaves out aliases; the registered model has them all, and says whether it exists.
                registered = client.get_registered_model(model)
                found = list(pages(client.search_model_versions, filter_string=f"name={_quoted(model)}"))
        except NotInRegistry:
            raise ModelNotFound(model) from None
        pointing: dict[str, list[str]] = {}
        for alias, number in _aliases(registered).items():
            pointing.setdefault(number, []).append(alias)
        summaries = [
            VersionSummary(
                str(each.version),
                tuple(sorted(pointing.get(str(each.version), ()))),
                _moment(each.creation_timestamp),
                each.status == "READY",
            )
            for each in found
        ]
        return sorted(summaries, key=lambda summary: int(summary.number), reverse=True)

    def download(self, version: ModelVersion) -> ModelFiles:
        """Return all files of a version on this machine, downloading them where they are not here yet.

        Release them when the model is closed, since it may read from them lazily, or cannot be loaded. Artifacts on
        this machine's own file system are used where they are.

        Raises:
            LoadFailed: the artifacts are gone, or cannot be written here.
            DiskFull: this machine has no room for them.
            RegistryUnavailable: the artifact store does not answer.
        """
        with reading_artifacts(version.model, version.number):
            local = local_directory(version.source)
            if local is not None:
                if not (local / MLMODEL).is_file():
                    raise ArtifactsMissing(version.source)
                return ModelFiles(local, size_of(local))
            # A copied model keeps its model_uuid, whatever is changed in the copy: only with the place is it unique.
            name = f"{version.model_uuid}-{_short_hash(version.source)}"
            stated = version.card.size_bytes  # by a file that others wrote
            size_bytes = stated if isinstance(stated, int) else 0
            files = self.artifacts.fetch(name, lambda partial: self._download(version.source, partial), size_bytes)
            return FilesOfStore(files, lambda: list_all_files(version.source, self.address.tracking_uri))

    def _download(self, source: str, directory: Path) -> None:
        # A short question first, under the short time-out: an unreachable store is noticed within seconds.
        if MLMODEL not in list_files(source, self.address.tracking_uri):
            raise ArtifactsMissing(source)
        with patient_downloads():
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(directory), tracking_uri=self.address.tracking_uri
            )
        _lift(Path(got), directory)

    def _registered_version(self, model: str, number: str, policy: VersionPolicy) -> Any:
        """Return MLflow's record of a version that is ready."""
        try:
            if int(number) > _HIGHEST_NUMBER:
                raise NotInRegistry(number)
            with asking(f"version {number} of {model!r}"):
                found = self._client().get_model_version(model, number)
        except NotInRegistry:
            raise self._not_found(model, number, policy) from None
        if found.status != "READY":
            raise self._not_found(model, number, policy)
        return found

    def _location(self, model: str, number: str) -> str:
        """Return where a version's artifacts are, as a URI that needs no registry to be understood."""
        client = self._client()
        try:
            with asking(f"the artifacts of version {number} of {model!r}"):
                uri: str = client.get_model_version_download_uri(model, number)
                # MLflow would look up "models:/" at its global address, which may be another registry.
                if other := _OTHER_VERSION.fullmatch(uri):
                    uri = client.get_model_version_download_uri(other[1], other[2])
                if logged := _LOGGED_MODEL.fullmatch(uri):
                    uri = client.get_logged_model(logged[1]).artifact_location
        except NotInRegistry:
            with reading_artifacts(model, number):
                raise ArtifactsMissing(number) from None
        return uri

    def _not_found(self, model: str, reference: str, policy: VersionPolicy) -> ModelNotFound | VersionNotFound:
        """Return the error for a reference that does not exist, with those that do."""
        try:
            return VersionNotFound(model, reference, available_references(self._lately_listed(model), policy))
        except ModelNotFound as error:
            return error

    def _lately_listed(self, model: str) -> list[VersionSummary]:
        """List the versions for an error's text: an old list will do, so that wrong guesses stay cheap."""
        listed_at, listed = self._listed.get(model, (float("-inf"), []))
        if time.monotonic() - listed_at < self.address.fresh_for_s:
            return listed
        listed = self.summaries(model)
        if len(self._listed) >= 64:
            self._listed.clear()
        self._listed[model] = (time.monotonic(), listed)
        return listed

    def _client(self) -> MlflowClient:
        with self._lock:
            if self._connected is None:
                try:
                    with asking("a connection"):
                        self._connected = MlflowClient(
                            tracking_uri=self.address.tracking_uri, registry_uri=self.address.registry_uri
                        )
                except NotInRegistry as error:
                    raise ConfigurationError(f"MLflow cannot use this address: {error.__cause__}") from error
            return self._connected


def _quoted(name: str) -> str:
    """Quote a model's name for MLflow's search filter, which knows no escapes."""
    for quote in ("'", '"'):
        if quote not in name:
            return f"{quote}{name}{quote}"
    raise ConfigurationError(f"MLflow cannot search for the versions of {name!r}: it has both kinds of quotes.")


def _aliases(registered: Any) -> dict[str, str]:
    """Return alias to version number; databases give the number as an integer, servers as text."""
    return {alias: str(number) for alias, number in registered.aliases.items()}


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _lift(downloaded: Path, directory: Path) -> None:
    """Move what was downloaded into a folder of the directory up into the directory itself."""
    if downloaded.resolve() == directory.resolve():
        return
    # Renamed first: a folder "artifacts" may well have another folder "artifacts" in it.
    folder = downloaded.rename(directory / f".{uuid4().hex}")
    for path in folder.iterdir():
        path.rename(directory / path.name)
    folder.rmdir()
