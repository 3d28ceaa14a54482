"""``registry-serve run``: one registered model on a fast cluster of its own."""

from __future__ import annotations

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import typer
from pydantic import ValidationError

from registry_serve.application import AppArgs, choose_version
from registry_serve.cli.screen import say, show
from registry_serve.cli.serving import fetch, local_address, serve_until_stopped
from registry_serve.contract import Contract
from registry_serve.deployment import cache_policy, deployment_name
from registry_serve.errors import ConfigurationError, RegistryUnavailable
from registry_serve.launch import Launch, ServedApplication, has_haproxy, require_free
from registry_serve.policies import LoadPolicy, RegistryAddress, VersionPolicy
from registry_serve.protocols.gate import keys_in
from registry_serve.registry import ModelVersion, Registry, impatient_http, parse_reference, registry_address
from registry_serve.signature import example_body

#: Longer examples make no line that anybody would paste.
_LONGEST_EXAMPLE = 1000
_MOST_VERSIONS = 12
_LOOPBACK, _EVERY_ADDRESS = "127.0.0.1", "0.0.0.0"  # noqa: S104 - only where somebody asks for it


def _argument(name: str) -> Any:
    """Offer an argument of the application as an option; its value is text, which the application understands."""
    return typer.Option(help=AppArgs.model_fields[name].description, rich_help_panel="The model", show_default=False)


def run(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL[@ALIAS|/VERSION]",
            help="A registered model, and its default version: 'champion' if there is that alias, else the latest.",
        ),
    ],
    tracking_uri: Annotated[str | None, _argument("tracking_uri")] = None,
    registry_uri: Annotated[str | None, _argument("registry_uri")] = None,
    versions: Annotated[str | None, _argument("versions")] = None,
    compatibility: Annotated[str | None, _argument("compatibility")] = None,
    max_models_per_replica: Annotated[str | None, _argument("max_models_per_replica")] = None,
    limits: Annotated[str | None, _argument("limits")] = None,
    title: Annotated[str | None, _argument("title")] = None,
    cache: Annotated[str | None, _argument("cache")] = None,
    batching: Annotated[str | None, _argument("batching")] = None,
    environment: Annotated[str | None, _argument("environment")] = None,
    isolation: Annotated[str | None, _argument("isolation")] = None,
    api_key_file: Annotated[str | None, _argument("api_key_file")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in who reaches --host.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(help="Copies of the model that answer at the same time.", min=1)] = 1,
    cpus: Annotated[float, typer.Option(help="CPUs of each replica.", min=0)] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of each replica; a fraction shares one.", min=0)] = 0.0,
) -> None:
    """Serve a registered model, on a cluster of its own, until Ctrl-C."""
    given = {name: context.params[name] for name in AppArgs.model_fields if context.params.get(name) is not None}
    name, reference = model_and_reference(model)
    args = _validated({**given, "model": name, "version": reference})
    host = _LOOPBACK if host == "localhost" else host
    _require_a_decision(host, args, no_auth)
    if "RAY_ADDRESS" in os.environ:
        raise ConfigurationError(_JOIN_INSTEAD.format(model=name))
    require_free(host, port)
    default, args = _resolve(args)
    launch = Launch(
        applications=(ServedApplication(name=deployment_name(name), args=args.model_dump(mode="json")),),
        host=host,
        port=port,
        replicas=replicas,
        cpus=cpus,
        gpus=gpus,
        drain_s=args.limits.request_timeout_s,
    )
    serve_until_stopped(
        launch,
        lambda logs: _announce(launch, args, default, logs),
        max_body_bytes=args.limits.max_body_bytes,
        headers=_headers(args),
    )


_JOIN_INSTEAD = (
    "RAY_ADDRESS names a cluster that runs already, and `run` starts one of its own. Unset RAY_ADDRESS, or serve on "
    "that cluster with: serve run registry_serve:app model={model}"
)


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


def _validated(given: dict[str, Any]) -> AppArgs:
    try:
        return AppArgs(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-") if first["loc"] else "arguments"
        raise ConfigurationError(f"--{option}: {first['msg'].removeprefix('Value error, ')}.") from None


def _require_a_decision(host: str, args: AppArgs, no_auth: bool) -> None:
    """Make sure that an endpoint that others reach is open because somebody wants it open.

    Raises:
        ConfigurationError: nobody said so, or the keys cannot be read.
    """
    if host not in (_LOOPBACK, _EVERY_ADDRESS):
        # HAProxy asks the replicas on loopback, and they listen where it does.
        raise ConfigurationError(f"--host is {_LOOPBACK} or {_EVERY_ADDRESS}, not {host}.")
    if args.api_key_file is not None:
        keys_in(args.api_key_file)
        if no_auth:
            raise ConfigurationError("--no-auth and --api-key-file contradict each other. Give one of them.")
    elif not no_auth and host != _LOOPBACK:
        raise ConfigurationError(
            f"--host {host} lets others than this machine in. Give --api-key-file FILE, or --no-auth if it is to be "
            "open to everybody who reaches it."
        )


def _resolve(args: AppArgs) -> tuple[ModelVersion, AppArgs]:
    """Ask the registry for the default version, and put what it says into the arguments.

    Raises:
        RegistryServeError: it cannot be served, or the registry does not answer.
    """
    assert args.model is not None
    address = registry_address(args.tracking_uri, args.registry_uri)
    # The error says it; the log is for servers.
    logging.getLogger("registry_serve").setLevel(logging.ERROR)
    try:
        with impatient_http(address):
            default = _default_version(Registry(address), args.model, args)
    except RegistryUnavailable:
        raise ConfigurationError(
            f"The registry at {_without_password(address.registry_uri)} does not answer. Start it, or name another one "
            "with --tracking-uri or MLFLOW_TRACKING_URI."
        ) from None
    # What else would be refused where it is deployed, when Ray and Serve have started.
    Contract(default, args.compatibility)
    cache_policy(args.max_models_per_replica, args.cache)
    LoadPolicy(args.environment, args.isolation)
    keys = None if args.api_key_file is None else str(Path(args.api_key_file).absolute())
    return default, args.model_copy(update={"version": default.number, "api_key_file": keys, **_absolute(address)})


def _default_version(registry: Registry, model: str, args: AppArgs) -> ModelVersion:
    policy = VersionPolicy.of(args.versions)
    if args.version is None:
        return registry.version(model, choose_version(registry, model, policy))
    reference = parse_reference(str(args.version))
    assert reference is not None
    return registry.version(model, registry.number_of(model, reference, policy=policy))


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _absolute(address: RegistryAddress) -> dict[str, str]:
    return {"tracking_uri": address.tracking_uri, "registry_uri": address.registry_uri}


def _headers(args: AppArgs) -> dict[str, str]:
    if args.api_key_file is None:
        return {}
    # A header is latin-1 to Python's client; a key is UTF-8, like its file.
    return {"authorization": f"Bearer {keys_in(args.api_key_file)[0]}".encode().decode("latin-1")}


def _announce(launch: Launch, args: AppArgs, default: ModelVersion, logs: str) -> None:
    address = local_address(launch)
    described = fetch(f"{address}/model", _headers(args)) or {"versions": []}
    compatible = [each["version"] for each in described["versions"] if each["compatible"]]
    named = ", ".join(compatible[:_MOST_VERSIONS]) + (" ..." if len(compatible) > _MOST_VERSIONS else "")
    aliases = "".join(f", @{alias}" for alias in default.aliases)
    facts = {
        "address": address,
        "documentation": f"{address}/docs",
        "model": default.model,
        "default version": f"{default.number}{aliases}",
        "compatible versions": named or default.number,
        "replicas": str(launch.replicas),
        "API keys": "none: everybody may ask" if args.api_key_file is None else args.api_key_file,
        "logs": logs,
    }
    show("Serving", facts)
    if not has_haproxy():
        say("HAProxy is not installed, so this runs on Ray's own proxy, which is many times slower.")
    if launch.host != _LOOPBACK:
        say(f"It listens on {launch.host}, and Ray on ports of its own: docs/running.md says which ones to close.")
    else:
        say("It listens on this machine only. HAProxy's statistics and Ray's own ports listen on all its addresses.")
    say(f"Try it:\n\n    {curl(address, args, default)}\n\nCtrl-C ends it.")


def curl(address: str, args: AppArgs, default: ModelVersion) -> str:
    """Return a line for a shell that asks the model for its own input example, or else for its description."""
    body = example_body(default.card.input_example, Contract.schema_of(default))
    key = "" if args.api_key_file is None else f" -H {_bearer(args.api_key_file)}"
    if isinstance(body, list) and body and Contract.schema_of(default).inputs.bare:
        body = body[0]
    written = json.dumps(body, ensure_ascii=False)
    if body is None or len(written) > _LONGEST_EXAMPLE:
        return f"curl {address}/model{key}"
    return f"curl {address}/serve -d {shlex.quote(written)}{key}"


def _bearer(file: str) -> str:
    # The key stays in its file: neither the terminal nor the shell's history shows it.
    key = f"$(grep -m 1 -v -e '^ *#' -e '^ *$' {shlex.quote(file)})"
    return f'"Authorization: Bearer {key}"'
