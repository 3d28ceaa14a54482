"""``registry-serve models``, ``versions`` and ``diff``: what is in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, Schema

from registry_serve.cli.lookup import (
    RegistryUri,
    TrackingUri,
    looked_up,
    model_and_reference,
    named_version,
    registry_at,
    version_number,
    without_password,
)
from registry_serve.cli.replicas import Replicas, replicas_at
from registry_serve.cli.screen import NOTHING, AsJson, note, print_json, say, show_table
from registry_serve.contract import Contract
from registry_serve.errors import ConfigurationError, LoadFailed, RegistryServeError
from registry_serve.registry import ModelVersion, RegisteredModelSummary, Registry, VersionSummary, parse_reference
from registry_serve.signature import Compatibility

#: Exit code of ``diff`` for versions that are not compatible; 1 is for errors.
INCOMPATIBLE = 2


def models(
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: AsJson = False,
) -> None:
    """List the registered models."""
    with registry_at(tracking_uri, registry_uri) as registry:
        found = looked_up(partial(_model, registry), registry.models(), "Asking for the models' versions")
    if as_json:
        print_json({"registry": without_password(registry.address.registry_uri), "models": found})
        return
    if not found:
        say("The registry holds no registered model.")
        return
    rows = [
        (
            each["name"],
            each["latest_version"] or "",
            str(each["versions"]),
            ", ".join(f"@{alias} = {number}" for alias, number in each["aliases"].items()),
            ", ".join(f"{name}={value}" for name, value in each["tags"].items()),
        )
        for each in found
    ]
    show_table(("model", "latest", "versions", "aliases", "tags"), rows)


def _model(registry: Registry, model: RegisteredModelSummary) -> dict[str, Any]:
    summaries = registry.summaries(model.name)
    return {
        "name": model.name,
        "latest_version": next((each.number for each in summaries if each.ready), None),
        "versions": len(summaries),
        "aliases": dict(sorted(model.aliases.items())),
        "tags": dict(sorted(model.tags.items())),
    }


# --- versions --------------------------------------------------------------------------------------------------------


def versions(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL[@ALIAS|/VERSION]",
            help="A registered model, and the version that others are compared with: 'champion' if there is that "
            "alias, else the latest.",
        ),
    ],
    compatibility: Annotated[Compatibility, typer.Option(help="How alike signatures must be.")] = Compatibility.EXACT,
    limit: Annotated[int, typer.Option(help="How many versions to list, the newest ones.", min=1)] = 20,
    url: Annotated[str, typer.Option(help="Where it may be served.")] = "http://127.0.0.1:8000",
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first key is sent there.")] = None,
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: AsJson = False,
) -> None:
    """List a model's versions, newest first: which of them one endpoint serves, and where they are loaded."""
    name, reference = model_and_reference(model)
    with registry_at(tracking_uri, registry_uri) as registry:
        listed = registry.summaries(name)
        if not listed:
            raise ConfigurationError(f"{name!r} has no versions. Register one with mlflow.register_model.")
        default = registry.version(name, version_number(registry, name, reference))
        contract, refused = _contract(default, compatibility)
        describe = partial(_version, registry, name, contract)
        found = looked_up(describe, listed[:limit], "Reading the versions' signatures")
    replicas = replicas_at(url, name, api_key_file)
    found = [{**each, "loaded_in": replicas.having(each["version"])} for each in found]
    not_shown = len(listed) - len(found)
    if as_json:
        served = {"url": url, "replicas": sorted(replicas.loaded)} if replicas.loaded else None
        told: dict[str, Any] = {"model": name, "default_version": default.number, "default_refused": refused}
        told |= {"compatibility": compatibility.value, "served": served}
        print_json({**told, "versions": found, "versions_not_shown": not_shown})
        return
    columns = ("version", "aliases", "created", "compatible", "signature", "loaded in")
    show_table(columns, [_row(each, default.number, replicas) for each in found])
    if refused:
        note(f"None is compatible, since version {default.number} cannot be the default: {refused}")
    if not_shown:
        note(f"{len(found)} of {len(listed)} versions. See more with --limit {len(listed)}.")


def _contract(default: ModelVersion, compatibility: Compatibility) -> tuple[Contract | None, str | None]:
    """Return the contract that a default version makes, or why it makes none."""
    try:
        return Contract(default, compatibility), None
    except ConfigurationError as error:
        return None, str(error)


def _version(registry: Registry, model: str, contract: Contract | None, summary: VersionSummary) -> dict[str, Any]:
    described: dict[str, Any] = {
        "version": summary.number,
        "aliases": list(summary.aliases),
        "created": summary.created.isoformat(),
        "ready": summary.ready,
        "compatible": None,
        "differences": [],
        "unavailable": None,
        "signature": None,
        "signature_line": "",
    }
    if not summary.ready:
        return {**described, "compatible": False, "unavailable": "the registry is not done with it"}
    try:
        version = registry.version(model, summary.number)
    except LoadFailed as error:
        return {**described, "compatible": False, "unavailable": str(error)}
    except RegistryServeError as error:
        return {**described, "unavailable": str(error)}
    described |= {"signature": _parts(version.card.signature), "signature_line": in_one_line(version.card.signature)}
    if contract is None:
        return described
    differences = contract.differences(version)
    return {**described, "compatible": not differences, "differences": differences}


def _row(described: Mapping[str, Any], default: str, replicas: Replicas) -> tuple[str, ...]:
    number = described["version"]
    return (
        number,
        ", ".join(f"@{alias}" for alias in described["aliases"]),
        described["created"][:16].replace("T", " "),
        _compatible(described) + (" (the default)" if number == default else ""),
        described["signature_line"],
        f"{len(described['loaded_in'])} of {len(replicas.loaded)}" if described["loaded_in"] else "",
    )


def _compatible(described: Mapping[str, Any]) -> str:
    reasons = "; ".join(each["message"] for each in described["differences"]) or described["unavailable"]
    words = {True: "yes", False: "no", None: "unknown"}[described["compatible"]]
    return f"{words}: {reasons}" if reasons else words


def _parts(signature: ModelSignature | None) -> dict[str, Any] | None:
    if signature is None:
        return None
    parts = {"inputs": signature.inputs, "outputs": signature.outputs, "params": signature.params}
    return {name: part.to_dict() if part else None for name, part in parts.items()}


def in_one_line(signature: ModelSignature | None) -> str:
    """Return a signature as people say it: ``prompt: string -> text: string``; ``?`` marks what is optional."""
    if signature is None:
        return "none"
    params = f"; params {_params(signature.params)}" if signature.params else ""
    return f"{_columns(signature.inputs)}{params} -> {_columns(signature.outputs)}"


def _columns(schema: Schema | None) -> str:
    if schema is None:
        return NOTHING
    return ", ".join(f"{_name(spec)}{_type(spec)}" for spec in schema.to_dict())


def _name(spec: Mapping[str, Any]) -> str:
    mark = "" if spec.get("required", True) else "?"
    return f"{spec['name']}{mark}: " if spec.get("name") else mark


def _type(spec: Mapping[str, Any]) -> str:
    if spec["type"] == "tensor":
        shape = ", ".join(map(str, spec["tensor-spec"]["shape"]))
        return f"{spec['tensor-spec']['dtype']} ({shape})"
    if spec["type"] == "array":
        return f"[{_type(spec['items'])}]"
    if spec["type"] == "map":
        return f"{{*: {_type(spec['values'])}}}"
    if spec["type"] == "object":
        members = (f"{_name({**each, 'name': name})}{_type(each)}" for name, each in spec["properties"].items())
        return f"{{{', '.join(members)}}}"
    return str(spec["type"])


def _params(schema: ParamSchema) -> str:
    return ", ".join(f"{spec['name']}={spec['default']!r}" for spec in schema.to_dict())


# --- diff ------------------------------------------------------------------------------------------------------------


def diff(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered model.")],
    expected: Annotated[
        str, typer.Argument(metavar="VERSION", help="Whose API is promised: a number, @alias or latest.")
    ],
    found: Annotated[
        str, typer.Argument(metavar="OTHER", help="The version held against it; NAME/3 is one of another model.")
    ],
    compatibility: Annotated[Compatibility, typer.Option(help="How alike signatures must be.")] = Compatibility.EXACT,
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: AsJson = False,
) -> None:
    """Show what keeps a version from answering the API of another one; exit code 2 if anything does."""
    with registry_at(tracking_uri, registry_uri) as registry:
        ours, theirs = (_one_of(registry, model, each) for each in (expected, found))
    differences = Contract(ours, compatibility).differences(theirs)
    if as_json:
        sides = {"expected": _named(ours), "found": _named(theirs), "compatibility": compatibility.value}
        print_json({**sides, "compatible": not differences, "differences": differences})
    elif differences:
        columns = ("where", "name", "kind", f"version {ours.number}", f"version {theirs.number}", "that is")
        show_table(columns, [_difference(each) for each in differences])
    else:
        agrees = "has the same API as" if compatibility is Compatibility.EXACT else "answers the API of"
        say(f"Version {theirs.number} of {theirs.model} {agrees} version {ours.number}.")
    if differences:
        raise typer.Exit(INCOMPATIBLE)


def _one_of(registry: Registry, model: str, written: str) -> ModelVersion:
    if parse_reference(written) is None:
        return named_version(registry, written)
    return registry.version(model, version_number(registry, model, written))


def _named(version: ModelVersion) -> dict[str, Any]:
    return {"model": version.model, "version": version.number, "aliases": list(version.aliases)}


def _difference(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(found[name] or "") for name in ("where", "column", "kind", "expected", "found", "message"))
