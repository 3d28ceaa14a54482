"""What MLflow's errors mean to us. One place, since MLflow tells kinds of trouble apart by code, class and text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from mlflow.exceptions import MlflowException

from registry_serve.downloaders import is_disk_full
from registry_serve.errors import ConfigurationError, DiskFull, LoadFailed, RegistryServeError, RegistryUnavailable
from registry_serve.registry.cards import ArtifactsMissing, CardUnreadable

_log = logging.getLogger(__name__)

_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


class NotInRegistry(RegistryUnavailable):
    """The registry answered that it has no such thing.

    Who asks for something by name catches this; where nothing was named, it is an answer without a meaning.
    """


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Map what a question to the registry raises.

    Args:
        what: what is asked for, in words that a client may read.

    Raises:
        NotInRegistry: the registry says that it does not exist, or that no such thing could be named so.
        ConfigurationError: the address is none that MLflow understands.
        RegistryUnavailable: anything else, from a refused connection to a 500; the log has the cause.
    """
    try:
        yield
    except RegistryServeError:
        raise
    except MlflowException as error:
        # A missing alias is an INVALID_PARAMETER_VALUE to MLflow, and so is a name that could not be registered.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise NotInRegistry(what) from error
        if error.error_code == "FEATURE_DISABLED":
            raise ConfigurationError(f"MLflow has no registry at this address: {error.message}") from error
        raise _unavailable(what, error) from error
    except Exception as error:
        raise _unavailable(what, error) from error


def _unavailable(what: str, error: Exception) -> RegistryUnavailable:
    # The client's sentence must not hold addresses of the inside: they go to the log.
    _log.warning("The model registry was asked for %s: %s", what, error)
    refused = isinstance(error, MlflowException) and error.error_code in _REFUSED
    return RegistryUnavailable(f"{what}: it refuses this server's credentials" if refused else what)


@contextmanager
def reading_artifacts(model: str, number: str) -> Iterator[None]:
    """Map what reading a version's artifacts raises. The version itself is known to exist.

    Raises:
        LoadFailed: trying again is of no use: the artifacts are gone or unreadable, or this machine lacks something.
        DiskFull: this machine has no room for them.
        RegistryUnavailable: the artifact store does not answer.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            _log.warning("There is no room for the artifacts of version %s of %r: %s", number, model, error)
            raise DiskFull(model, number) from error
        reason = _why_unreadable(error)
        if reason is None:
            raise _unavailable(f"the artifacts of version {number} of {model!r}", error) from error
        _log.warning("The artifacts of version %s of %r cannot be read: %s", number, model, error)
        raise LoadFailed(model, number, reason) from error


def _why_unreadable(error: Exception) -> str | None:
    """Say why the artifacts can never be read, or return None where the store just does not answer."""
    if isinstance(error, CardUnreadable):
        return str(error)
    if isinstance(error, ArtifactsMissing | FileNotFoundError) or _is_not_found(error):
        return "its artifacts are missing from the artifact store"
    if isinstance(error, ImportError):
        return f"its artifact store needs a Python package that is not installed here ({error.name})"
    # Everything that requests raises is an OSError too, and so are sockets' own errors.
    network = requests.RequestException | ConnectionError | TimeoutError
    if isinstance(error, OSError) and not isinstance(error, network):
        return "its artifacts cannot be read by this server"
    return None


def _is_not_found(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code == 404
    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
