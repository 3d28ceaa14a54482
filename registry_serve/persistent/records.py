"""What is known on this machine of its persistent deployments: one file for each, so that other processes find it.

A file holds the token that opens the deployment: it is readable by its owner only.
"""

from __future__ import annotations

import errno
import logging
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry_serve.deployment import deployment_name
from registry_serve.errors import ConfigurationError, DeploymentNotFound
from registry_serve.persistent.config import MIIConfig, default_name, is_folder, quoted
from registry_serve.rollout.state import state_folder, write

logger = logging.getLogger(__name__)

_SUFFIX = ".json"


class Record(BaseModel):
    """One deployment.

    Attributes:
        config: of it, complete.
        token: that every call must bring.
        address: of the Ray cluster.
        session: folder of Ray's files, which names this cluster among all that ever were.
        created: when it was served.
    """

    model_config = ConfigDict(frozen=True)

    config: MIIConfig
    token: str = Field(repr=False)
    address: str
    session: str
    created: datetime

    @property
    def name(self) -> str:
        """Its name."""
        return self.config.name

    @property
    def application(self) -> str:
        """Its name on Ray Serve, which knows fewer characters."""
        return deployment_name(self.name)

    @property
    def path(self) -> Path:
        """The file that it is kept in."""
        return _path(self.name)


def keep(record: Record) -> None:
    """Write a record."""
    write(record.path, record.model_dump_json(indent=2, by_alias=True))


def forget(record: Record) -> None:
    """Remove a record, if it is still this one."""
    if (there := find(record.name)) is not None and there.token == record.token:
        record.path.unlink(missing_ok=True)


def read(path: Path) -> Record | None:
    """Read a record, None where there is none.

    Raises:
        ConfigurationError: it makes no sense.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # so nobody can have written it
            return None
        raise ConfigurationError(
            f"{path} cannot be read: it is damaged, of another release, or its model is gone. Remove it."
        ) from None


def find(name: str) -> Record | None:
    """Return the record of the deployment with a name, None where there is none."""
    return read(_path(name))


def readable(name: str) -> bool:
    """Say whether the record of a deployment makes sense; one that is not there does."""
    try:
        find(name)
    except ConfigurationError:
        return False
    return True


def everything() -> list[Record]:
    """Return all records, by name. One that makes no sense is left out, and the log says so."""
    found = []
    for path in _paths():
        try:
            found.append(read(path))
        except ConfigurationError as error:
            logger.warning("%s", error)
    return [record for record in found if record is not None]


def names() -> list[str]:
    """Return the names of everything that is written down, also of what cannot be read."""
    return [unquote(path.name.removesuffix(_SUFFIX)) for path in _paths()]


def discard(name: str) -> None:
    """Remove what is written down of a deployment, whatever it is."""
    _path(name).unlink(missing_ok=True)


def named(model_or_deployment: str) -> Record:
    """Return the record of a deployment that is named by its own name or by its model.

    Of several deployments of one model it is the one with the name that none was given for, else the newest.

    Raises:
        DeploymentNotFound: there is none.
    """
    if (found := find(model_or_deployment)) is not None:
        return found
    there = everything()
    folder = Path(model_or_deployment).expanduser()
    model = str(folder.absolute()) if is_folder(folder) else model_or_deployment
    serving = [record for record in there if record.config.model_conf.model_name_or_path == model]
    if not serving:
        raise DeploymentNotFound(model_or_deployment, [record.name for record in there])
    return max(serving, key=lambda record: (record.name == default_name(model), record.created))


def _path(name: str) -> Path:
    return state_folder("persistent") / f"{quoted(name)}{_SUFFIX}"


def _paths() -> list[Path]:
    return sorted(state_folder("persistent").glob(f"*{_SUFFIX}"))
