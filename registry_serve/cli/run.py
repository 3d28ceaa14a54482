"""``registry-serve run``: one registered model on a fast cluster of its own."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from registry_serve.application import AppArgs
from registry_serve.cli.access import LOOPBACK, authorization, authorization_in_shell, require_a_decision
from registry_serve.cli.lookup import model_and_reference, registry_at, version_number
from registry_serve.cli.screen import AsJson, print_json, say, show
from registry_serve.cli.serving import fetch, local_address, serve_until_stopped
from registry_serve.contract import Contract
from registry_serve.deployment import cache_policy, deployment_name
from registry_serve.errors import ConfigurationError
from registry_serve.launch import Launch, ServedApplication, has_haproxy, require_free
from registry_serve.policies import LoadPolicy, RegistryAddress, VersionPolicy
from registry_serve.registry import ModelVersion
from registry_serve.signature import example_body

#: Longer examples make no line that anybody would paste.
_LONGEST_EXAMPLE = 1000
_MOST_VERSIONS = 12


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
    rate_limit: Annotated[str | None, _argument("rate_limit")] = None,
    title: Annotated[str | None, _argument("title")] = None,
    cache: Annotated[str | None, _argument("cache")] = None,
    batching: Annotated[str | None, _argument("batching")] = None,
    environment: Annotated[str | None, _argument("environment")] = None,
    isolation: Annotated[str | None, _argument("isolation")] = None,
    engine: Annotated[str | None, _argument("engine")] = None,
    api_key_file: Annotated[str | None, _argument("api_key_file")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in who reaches --host.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(help="Copies of the model that answer at the same time.", min=1)] = 1,
    cpus: Annotated[float, typer.Option(help="CPUs of each replica.", min=0)] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of each replica; a fraction shares one.", min=0)] = 0.0,
    gpu_type: Annotated[str | None, typer.Option(help="Which GPUs, such as A100 or a100_40gb.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a registered model, on a cluster of its own, until Ctrl-C."""
    given = {name: context.params[name] for name in AppArgs.model_fields if context.params.get(name) is not None}
    name, reference = model_and_reference(model)
    args = _validated({**given, "model": name, "version": reference})
    host = LOOPBACK if host == "localhost" else host
    require_a_decision(host, args.api_key_file, no_auth)
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
        gpu_type=gpu_type,
        drain_s=args.limits.request_timeout_s,
    )
    serve_until_stopped(
        launch,
        lambda logs: _announce(launch, args, default, logs, as_json),
        max_body_bytes=args.limits.max_body_bytes,
        headers=authorization(args.api_key_file),
    )


_JOIN_INSTEAD = (
    "RAY_ADDRESS names a cluster that runs already, and `run` starts one of its own. Unset RAY_ADDRESS, or serve on "
    "that cluster with: serve run registry_serve:app model={model}"
)


def _validated(given: dict[str, Any]) -> AppArgs:
    try:
        return AppArgs(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-") if first["loc"] else "arguments"
        raise ConfigurationError(f"--{option}: {first['msg'].removeprefix('Value error, ')}.") from None


def _resolve(args: AppArgs) -> tuple[ModelVersion, AppArgs]:
    """Ask the registry for the default version, and put what it says into the arguments.

    Raises:
        RegistryServeError: it cannot be served, or the registry does not answer.
    """
    assert args.model is not None
    with registry_at(args.tracking_uri, args.registry_uri) as registry:
        policy = VersionPolicy.of(args.versions)
        reference = None if args.version is None else str(args.version)
        default = registry.version(args.model, version_number(registry, args.model, reference, policy))
    # What else would be refused where it is deployed, when Ray and Serve have started.
    Contract(default, args.compatibility)
    cache_policy(args.max_models_per_replica, args.cache)
    LoadPolicy(args.environment, args.isolation, args.engine)
    keys = None if args.api_key_file is None else str(Path(args.api_key_file).absolute())
    found = {"version": default.number, "api_key_file": keys, **_absolute(registry.address)}
    return default, args.model_copy(update=found)


def _absolute(address: RegistryAddress) -> dict[str, str]:
    return {"tracking_uri": address.tracking_uri, "registry_uri": address.registry_uri}


def _announce(launch: Launch, args: AppArgs, default: ModelVersion, logs: str, as_json: bool) -> None:
    address = local_address(launch)
    described = fetch(f"{address}/model", authorization(args.api_key_file)) or {"versions": []}
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
    if as_json:
        told = {"address": address, "docs": f"{address}/docs", "model": default.model, "version": default.number}
        print_json({**told, "compatible_versions": compatible, "replicas": launch.replicas, "logs": logs})
        return
    show("Serving", facts)
    if not has_haproxy():
        say("HAProxy is not installed, so this runs on Ray's own proxy, which is many times slower.")
    if launch.host != LOOPBACK:
        say(f"It listens on {launch.host}, and Ray on ports of its own: docs/running.md says which ones to close.")
    else:
        say("It listens on this machine only. HAProxy's statistics and Ray's own ports listen on all its addresses.")
    say(f"Try it:\n\n    {curl(address, args, default)}\n\nCtrl-C ends it.")


def curl(address: str, args: AppArgs, default: ModelVersion) -> str:
    """Return a line for a shell that asks the model for its own input example, or else for its description."""
    body = example_body(default.card.input_example, Contract.schema_of(default))
    key = authorization_in_shell(args.api_key_file)
    if isinstance(body, list) and body and Contract.schema_of(default).inputs.bare:
        body = body[0]
    written = json.dumps(body, ensure_ascii=False)
    if body is None or len(written) > _LONGEST_EXAMPLE:
        return f"curl {address}/model{key}"
    return f"curl {address}/serve -d {shlex.quote(written)}{key}"
