"""Where the registry is, said so that it means the same in every process of a cluster."""

from __future__ import annotations

import logging
from pathlib import Path

import mlflow

from registry_serve.errors import ConfigurationError
from registry_serve.policies import RegistryAddress

logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_DATABASES = ("postgresql", "mysql", "mssql")


def registry_address(tracking_uri: str | None = None, registry_uri: str | None = None) -> RegistryAddress:
    """Return the addresses given, or MLflow's current ones, in absolute form.

    Args:
        tracking_uri: as MLflow takes it; what ``mlflow.get_tracking_uri()`` says if not given.
        registry_uri: as MLflow takes it; if not given, the tracking URI where that is given, else what
            ``mlflow.get_registry_uri()`` says.
    """
    tracking = tracking_uri or mlflow.get_tracking_uri()
    registry = registry_uri or (tracking if tracking_uri else mlflow.get_registry_uri())
    if tracking.startswith(_DATABASES):
        logger.warning(
            "The registry is reached through its database. Use its http address in production: a replica with a newer "
            "MLflow migrates the database's schema without asking, which locks older clients out."
        )
    return RegistryAddress(_absolute(tracking), _absolute(registry))


def require_database(address: RegistryAddress, named_with: str) -> None:
    """Look for the file of a database: MLflow would make an empty one, which is in nobody's interest here.

    Args:
        address: of the registry.
        named_with: what another one can be named with, for the error.

    Raises:
        ConfigurationError: there is no such file.
    """
    for uri in (address.tracking_uri, address.registry_uri):
        path = database_file(uri)
        if path is not None and not path.exists():
            raise ConfigurationError(f"There is no registry at {uri}. Name one with {named_with}.")


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite database, None for every other address."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def _absolute(uri: str) -> str:
    """Make the path of a SQLite file absolute: a replica's working directory is another one."""
    if not uri.startswith(_SQLITE) or uri.startswith(_SQLITE + "/"):
        return uri
    path, question_mark, query = uri.removeprefix(_SQLITE).partition("?")
    return f"{_SQLITE}{Path(path).absolute().as_posix()}{question_mark}{query}" if path else uri
