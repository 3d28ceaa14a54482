"""``registry-serve check``: which versions of a registry could be served here, and why others could not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any, NamedTuple

import typer
from rich.filesize import decimal

from registry_serve.cli.lookup import (
    RegistryUri,
    TrackingUri,
    looked_up,
    model_and_reference,
    registry_at,
    version_number,
    without_password,
)
from registry_serve.cli.screen import NOTHING, AsJson, note, print_json, say, show_table
from registry_serve.contract import Contract
from registry_serve.errors import RegistryServeError, RegistryUnavailable, VersionNotFound
from registry_serve.models.environment import Environment, compared
from registry_serve.registry import ModelCard, ModelVersion, Registry
from registry_serve.registry.requirements import requirements_of

#: Of the packages that differ, a table names so many.
_MOST_NAMED = 3


class _Asked(NamedTuple):
    """A version that is to be looked at; without a number, a model that has none to be served."""

    model: str
    number: str | None
    default: bool


def check(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL[@ALIAS|/VERSION]]...", help="Registered models; all of them if not given."),
    ] = None,
    every_version: Annotated[
        bool, typer.Option("--all", help="Look at all versions, not only at the one served by default.")
    ] = False,
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: AsJson = False,
) -> None:
    """Take a census: could each model be served here? Exit code 1 if a version served by default could not."""
    with registry_at(tracking_uri, registry_uri) as registry:
        named = models or [model.name for model in registry.models()]
        asked = looked_up(partial(_versions, registry, every_version, bool(models)), named, "Asking for versions")
        found = looked_up(partial(_examined, registry), list(chain(*asked)), "Looking at versions")
    failing = [each for each in found if each["default"] and not each["servable"]]
    if as_json:
        told = {"registry": without_password(registry.address.registry_uri), "ok": not failing}
        print_json({**told, "servable": sum(each["servable"] is True for each in found), "versions": found})
    elif not found:
        say("The registry holds no registered model.")
    else:
        columns = ("model", "version", "servable", "signature", "environment", "size", "why not")
        show_table(columns, [_row(each) for each in found])
        _summarize(found, failing)
    if failing:
        raise typer.Exit(1)


def _versions(registry: Registry, every_version: bool, by_hand: bool, written: str) -> list[_Asked]:
    model, reference = model_and_reference(written) if by_hand else (written, None)
    default = None
    try:
        default = version_number(registry, model, reference)
    except VersionNotFound:
        if by_hand:
            raise
    if not every_version:
        return [_Asked(model, default, default is not None)]
    numbers = [each.number for each in registry.summaries(model)]
    return [_Asked(model, number, number == default) for number in numbers] or [_Asked(model, None, False)]


def _examined(registry: Registry, asked: _Asked) -> dict[str, Any]:
    described: dict[str, Any] = {
        "model": asked.model,
        "version": asked.number,
        "default": asked.default,
        "aliases": [],
        "servable": False,
        "reason": None,
        "signature": None,
        "flavor": None,
        "environment": None,
        "size_bytes": None,
    }
    if asked.number is None:
        return {**described, "reason": "It has no version that is ready."}
    try:
        version = registry.version(asked.model, asked.number)
        card = version.card
        described |= {"aliases": list(version.aliases), "flavor": card.flavor, "signature": _kind(card)}
        described |= {"size_bytes": card.size_bytes if isinstance(card.size_bytes, int) else None}
        described["environment"] = _environment(registry, version)
        Contract(version)
    except RegistryUnavailable as error:
        return {**described, "servable": None, "reason": str(error)}
    except VersionNotFound:
        return {**described, "reason": "The registry is not done with it."}
    except RegistryServeError as error:
        return {**described, "reason": str(error)}
    return {**described, "servable": True}


def _kind(card: ModelCard) -> str:
    if card.signature is None:
        return "none"
    if card.from_type_hint:
        return "type hint"
    if card.signature.inputs is None:
        return "params only"
    return "tensors" if card.signature.inputs.is_tensor_spec() else "columns"


def _environment(registry: Registry, version: ModelVersion) -> Mapping[str, Any] | None:
    """Compare what a version was logged with to what is installed here; None for what Python cannot load anyway."""
    if version.card.flavor is None:
        return None
    with requirements_of(version, registry.address.tracking_uri) as directory:
        environment: Environment = compared(directory)
    return environment.described()


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    aliases = "".join(f" @{alias}" for alias in found["aliases"])
    words = {True: "yes", False: "no", None: "unknown"}[found["servable"]]
    size = found["size_bytes"]
    return (
        found["model"],
        f"{found['version'] or NOTHING}{aliases}",
        words,
        found["signature"] or "",
        _in_words(found["environment"]),
        "" if size is None else decimal(size),
        (found["reason"] or "").split(". ")[0],  # what to do about it is told in JSON
    )


def _in_words(environment: Mapping[str, Any] | None) -> str:
    if environment is None:
        return ""
    differences = environment["differences"]
    if not differences:
        return "fits"
    named = ", ".join(each["requirement"] for each in differences[:_MOST_NAMED])
    beyond = len(differences) - _MOST_NAMED
    return f"wants {named}{f' and {beyond} more' if beyond > 0 else ''}"


def _summarize(found: Sequence[Mapping[str, Any]], failing: Sequence[Mapping[str, Any]]) -> None:
    count = Counter(each["servable"] for each in found)
    note(f"{count[True]} of {len(found)} versions could be served here.")
    if failing:
        named = ", ".join(f"{each['model']}/{each['version']}" for each in failing)
        note(f"Served by default, and could not be: {named}.")
