"""Fetching what a version says of the environment it needs, and never its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.artifacts

from registry_serve.downloaders import local_directory
from registry_serve.registry.answers import reading_artifacts
from registry_serve.registry.cards import MLMODEL, list_files
from registry_serve.registry.records import ModelVersion

_REQUIREMENTS = "requirements.txt"


@contextmanager
def requirements_of(version: ModelVersion, tracking_uri: str) -> Iterator[Path]:
    """Give a directory with the version's ``MLmodel`` and, if it has one, its ``requirements.txt``.

    Artifacts on this machine's own file system are used where they are.

    Raises:
        LoadFailed: the artifacts are gone, or cannot be read here.
        RegistryUnavailable: the artifact store does not answer.
    """
    local = local_directory(version.source)
    if local is not None:
        yield local
        return
    with TemporaryDirectory(prefix="registry-serve-requirements-") as directory:
        with reading_artifacts(version.model, version.number):
            there = list_files(version.source, tracking_uri)
            for name in (MLMODEL, _REQUIREMENTS):
                if name in there:
                    mlflow.artifacts.download_artifacts(
                        artifact_uri=f"{version.source.rstrip('/')}/{name}",
                        dst_path=directory,
                        tracking_uri=tracking_uri,
                    )
        yield Path(directory)
