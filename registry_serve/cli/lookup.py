"""The registry that a command asks, and which models and versions its arguments mean."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import typer
from rich.progress import track

from registry_serve.application import choose_version
from registry_serve.cli.screen import notes
from registry_serve.errors import ConfigurationError, RegistryUnavailable
from registry_serve.policies import VersionPolicy
from registry_serve.registry import (
    ModelVersion,
    Registry,
    impatient_http,
    parse_reference,
    registry_address,
    require_database,
)

#: Questions to the registry under way at a time: MLflow opens a database at most fifteen times.
_AT_A_TIME = 8

TrackingUri = Annotated[str | None, typer.Option(help="MLflow's tracking URI; MLFLOW_TRACKING_URI if not given.")]
RegistryUri = Annotated[str | None, typer.Option(help="MLflow's registry URI, where it is another one.")]

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def registry_at(tracking_uri: str | None, registry_uri: str | None) -> Iterator[Registry]:
    """Give the registry that a command is to ask; it is given up within seconds where nobody answers.

    Raises:
        ConfigurationError: there is none, or it does not answer.
    """
    address = registry_address(tracking_uri, registry_uri)
    require_database(address, "--tracking-uri or MLFLOW_TRACKING_URI")
    # The error says it; the log is for servers.
    log = logging.getLogger("registry_serve")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with impatient_http(address):
            yield Registry(address)
    except RegistryUnavailable as error:
        raise ConfigurationError(
            f"The registry at {without_password(address.registry_uri)} does not answer (asked for "
            f"{error.given['question']}). Start it, or name another one with --tracking-uri or MLFLOW_TRACKING_URI."
        ) from error
    finally:
        log.setLevel(level)


def without_password(uri: str) -> str:
    """Return an address as it may be shown."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def model_and_reference(text: str) -> tuple[str, str | None]:
    """Split what names a model and perhaps a version: ``NAME``, ``NAME@alias``, ``NAME/3``, ``models:/NAME/3``.

    Names of models hold neither ``/`` nor ``:`` in MLflow; they may hold ``@``.

    Returns:
        The name, and the version's reference or None.
    """
    rest = text.removeprefix("models:").lstrip("/") if text.startswith("models:") else text
    name, slash, number = rest.partition("/")
    if slash:
        name, reference = unquote(name), number.strip("/")
    else:
        name, at, alias = rest.rpartition("@")
        name, reference = (name, f"@{alias}") if at and name else (rest, "")
    if not name or (slash and not reference) or (reference and parse_reference(reference) is None):
        raise ConfigurationError(f"{text!r} names no model and version. Write NAME, NAME@alias or NAME/3.")
    return name, reference or None


def version_number(registry: Registry, model: str, written: str | None, versions: VersionPolicy | None = None) -> str:
    """Return the number of the version that is meant: without a reference, the one that is served by default.

    Raises:
        RegistryServeError: there is no such model or version.
    """
    policy = versions or VersionPolicy()
    if written is None:
        return choose_version(registry, model, policy)
    reference = parse_reference(written)
    if reference is None:
        raise ConfigurationError(f"{written!r} names no version. Write a number, @alias or latest.")
    return registry.number_of(model, reference, policy=policy)


def named_version(registry: Registry, text: str) -> ModelVersion:
    """Return the version that ``NAME``, ``NAME@alias`` or ``NAME/3`` means.

    Raises:
        RegistryServeError: there is no such model or version, or its card cannot be read.
    """
    model, reference = model_and_reference(text)
    return registry.version(model, version_number(registry, model, reference))


def looked_up(ask: Callable[[T], R], items: Sequence[T], doing: str) -> list[R]:
    """Ask for several things at a time, and show on a terminal how far it is.

    Args:
        ask: called in threads; what it raises ends the whole.
        items: what it is called with.
        doing: what is shown meanwhile.

    Returns:
        The answers, in the order of the items.
    """
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        answers = pool.map(ask, items)
        return list(
            track(answers, doing, total=len(items), console=notes, transient=True, disable=not notes.is_terminal)
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
