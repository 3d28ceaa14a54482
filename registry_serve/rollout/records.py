"""What is deployed from this machine: one file for each deployment, so that later commands know it again.

A file holds the deployment file as it was given, secrets included, since an update needs them: it is readable by its
owner only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from registry_serve.deployment_file import DeploymentFile
from registry_serve.errors import ConfigurationError, DeploymentNotFound
from registry_serve.rollout.code import Code
from registry_serve.rollout.state import state_folder, write


class Order(BaseModel):
    """What was asked for beside the file; None leaves a thing to the file.

    Attributes:
        replicas: instead of the file's.
        gpus: instead of ``compute.gpus``.
        gpu_type: instead of ``compute.gpu_type``.
        image: instead of the file's.
        use_image: run the replicas in that image.
        allow_command: run the file's command in each replica before it starts.
        host: that a cluster listens on which is started for this.
        port: the same.
        api_key_file: path of a file with keys.
    """

    model_config = ConfigDict(frozen=True)

    replicas: int | None = None
    gpus: float | None = None
    gpu_type: str | None = None
    image: str | None = None
    use_image: bool = False
    allow_command: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: str | None = None


class Source(BaseModel):
    """A registered model: which version it is, and in which registry, whatever the environment says later.

    Attributes:
        version: its number.
        tracking_uri: MLflow's, absolute.
        registry_uri: the same.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    tracking_uri: str
    registry_uri: str


class Record(BaseModel):
    """One deployment.

    Attributes:
        name: its route, too.
        file: the deployment file, complete.
        folder: that the file's paths are relative to.
        order: what was asked for beside it.
        code: what was gathered for the replicas.
        source: of a registered model; None for a handler.
        created: when this name was deployed first, as opposed to brought up to date.
        deployed: when it was last deployed.
        serves: a handler's path, or ``models:/NAME/VERSION``. This and what follows is empty until Serve has it.
        deployment: name of Serve's deployment.
        url: where it answers.
        address: of the Ray cluster.
        session: folder of Ray's files, which names this cluster among all that ever were.
        stopped: whether somebody took it offline.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    file: dict[str, Any]
    folder: str
    order: Order
    code: Code
    source: Source | None = None
    created: datetime
    deployed: datetime
    serves: str = ""
    deployment: str = ""
    url: str = ""
    address: str = ""
    session: str = ""
    stopped: bool = False

    @property
    def parsed(self) -> DeploymentFile:
        return DeploymentFile.model_validate(self.file)

    @property
    def replicas(self) -> int:
        return self.order.replicas or self.parsed.replicas


def keep(record: Record) -> None:
    """Write a record, over an earlier one of that name."""
    write(_path(record.name), record.model_dump_json(indent=2))


def spare(record: Record) -> bool:
    """Keep a record's archive from being pruned in the next hour; say whether it is there, if it has one."""
    with suppress(FileNotFoundError):
        if record.code.archive is not None:
            os.utime(record.code.archive)
        return True
    return False


def restore(name: str, earlier: Record | None) -> None:
    """Bring the record of a deployment back to what it was: None where there was none."""
    if earlier is None:
        forget(name)
    else:
        keep(earlier)


def forget(name: str) -> None:
    """Remove a record, if there is one."""
    _path(name).unlink(missing_ok=True)


def find(name: str) -> Record | None:
    """Return the record of a deployment, None where there is none.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return _read(name)
    except ValidationError:
        raise ConfigurationError(
            f"{_path(name)} cannot be read: it is damaged, or of another release. `registry-serve "
            f"delete deployment {name}` removes it, and ends what is deployed under that name."
        ) from None


def readable(name: str) -> bool:
    """Say whether the record of a deployment makes sense; one that is not there does."""
    try:
        _read(name)
    except ValidationError:
        return False
    return True


def get(name: str) -> Record:
    """Return the record of a deployment.

    Raises:
        DeploymentNotFound: there is none.
        ConfigurationError: it cannot be read.
    """
    found = find(name)
    if found is None:
        raise DeploymentNotFound(name, names())
    return found


def everything() -> list[Record]:
    """Return all records, by name.

    Raises:
        ConfigurationError: one cannot be read.
    """
    return [record for record in map(find, names()) if record is not None]


def names() -> list[str]:
    """Return the names of everything that is written down, also of what cannot be read."""
    return sorted(each.stem for each in state_folder("deployments").glob("*.json"))


def _path(name: str) -> Path:
    return state_folder("deployments") / f"{name}.json"


def _read(name: str) -> Record | None:
    if name not in names():
        return None
    try:
        record = Record.model_validate_json(_path(name).read_bytes())
    except FileNotFoundError:  # removed meanwhile
        return None
    DeploymentFile.model_validate(record.file)
    return record
