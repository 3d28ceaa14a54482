"""Reading a model's card: its ``MLmodel`` file and its input example, and never its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import mlflow.artifacts
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType

from registry_serve.registry.records import ModelCard

MLMODEL = "MLmodel"
#: Larger input examples are not fetched: they are shown in documentation and sent once as a warm-up.
MAX_EXAMPLE_BYTES = 2**20

_log = logging.getLogger(__name__)


class ArtifactsMissing(Exception):
    """The location holds no model."""


class CardUnreadable(Exception):
    """There is an ``MLmodel`` file, but not one that we can read."""


class Card(NamedTuple):
    """A card and the identity found beside it.

    Attributes:
        card: what the ``MLmodel`` file says.
        model_uuid: the model's identity, or an empty string: old versions of MLflow wrote none.
        revision: a short hash of the ``MLmodel`` file's bytes.
    """

    card: ModelCard
    model_uuid: str
    revision: str


def read_card(location: str, tracking_uri: str) -> Card:
    """Fetch and read the card of the model at an artifact location.

    Raises:
        ArtifactsMissing: nothing is there, or no ``MLmodel`` file.
        CardUnreadable: the file is not valid, or a newer MLflow wrote it.
        Exception: whatever the artifact store raises when it does not answer.
    """
    sizes = list_files(location, tracking_uri)
    if MLMODEL not in sizes:
        raise ArtifactsMissing(location)
    content = _fetch(location, MLMODEL, tracking_uri)
    document = _parse(content)
    example = None
    name = _example_name(document)
    if name in sizes:
        # A store that does not tell sizes is trusted: MLflow's own all do.
        if (sizes[name] or 0) <= MAX_EXAMPLE_BYTES:
            example = _parse_example(_fetch(location, name, tracking_uri), location)
        else:
            _log.info("The input example at %s has %s bytes; examples over 1 MiB are not used.", location, sizes[name])
    revision = hashlib.sha256(content).hexdigest()[:12]
    return Card(_card(document, example), str(document.get("model_uuid") or ""), revision)


def list_files(location: str, tracking_uri: str) -> dict[str, int | None]:
    """List what lies at the top of an artifact location: names and sizes in bytes; empty where nothing is."""
    files = mlflow.artifacts.list_artifacts(artifact_uri=location, tracking_uri=tracking_uri)
    return {PurePosixPath(file.path).name: file.file_size for file in files}


def list_all_files(location: str, tracking_uri: str) -> dict[str, int | None]:
    """List what lies at an artifact location at any depth: paths inside it, and sizes in bytes."""
    found: dict[str, int | None] = {}
    for file in mlflow.artifacts.list_artifacts(artifact_uri=location, tracking_uri=tracking_uri):
        name = PurePosixPath(file.path).name
        if file.is_dir:
            below = list_all_files(f"{location.rstrip('/')}/{name}", tracking_uri)
            found |= {f"{name}/{path}": size for path, size in below.items()}
        else:
            found[name] = file.file_size
    return found


def _fetch(location: str, name: str, tracking_uri: str) -> bytes:
    """Return the content of one small file."""
    with tempfile.TemporaryDirectory(prefix="registry-serve-card-") as directory:
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{location.rstrip('/')}/{name}", dst_path=directory, tracking_uri=tracking_uri
        )
        return Path(path).read_bytes()


def _parse(content: bytes) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CardUnreadable("its MLmodel file is not valid YAML") from error
    if not isinstance(document, dict) or not isinstance(document.get("flavors"), dict):
        raise CardUnreadable("its MLmodel file names no flavors")
    return document


def _card(document: Mapping[str, Any], example: Any | None) -> ModelCard:
    try:
        # MLflow's own reader keeps beside the signature what is not part of its JSON form.
        signature = Model.from_dict(dict(document)).signature
    except Exception as error:
        written_by = document.get("mlflow_version") or "an old MLflow"
        raise CardUnreadable(f"its signature, written by MLflow {written_by}, cannot be read") from error
    flavors: Mapping[str, Mapping[str, Any]] = document["flavors"]
    pyfunc = flavors.get("python_function") or {}
    return ModelCard(
        signature=signature,
        from_type_hint=bool(document.get("is_signature_from_type_hint")),
        flavor=pyfunc.get("loader_module"),
        input_example=example,
        code_paths=bool(pyfunc.get("code")),
        # Flavors such as langchain note it in their own section.
        from_code=any("model_code_path" in flavor for flavor in flavors.values() if isinstance(flavor, dict)),
        streamable=bool(pyfunc.get("streamable")),
        size_bytes=document.get("model_size_bytes"),
        mlflow_version=document.get("mlflow_version"),
        generates=_generates(flavors, signature),
    )


def _generates(flavors: Mapping[str, Mapping[str, Any]], signature: ModelSignature | None) -> bool:
    """Say whether this is a language model of the transformers flavour that is asked with one text at a time."""
    flavor = flavors.get("transformers") or {}
    # With an inference_task, MLflow's flavor answers in OpenAI's form; code of the model's own is for MLflow.
    if flavor.get("task") != "text-generation" or flavor.get("inference_task") or flavor.get("code"):
        return False
    columns = signature.inputs.inputs if signature is not None and signature.inputs is not None else []
    return len(columns) == 1 and isinstance(columns[0], ColSpec) and columns[0].type == DataType.string


def _example_name(document: Mapping[str, Any]) -> str:
    """Return the file name of the serving input; empty where there is none, as in models that are some years old."""
    info = document.get("saved_input_example_info")
    return str(info.get("serving_input_path") or "") if isinstance(info, dict) else ""


def _parse_example(content: bytes, location: str) -> Any | None:
    try:
        return json.loads(content)
    except ValueError:
        _log.warning("The input example at %s is not valid JSON and is not used.", location)
        return None
