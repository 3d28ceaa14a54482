"""``registry-serve get`` and ``describe``: what is deployed, how it is, and what it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Annotated, Any

import typer
import yaml

from registry_serve import rollout
from registry_serve.cli.endpoint import Endpoint
from registry_serve.cli.screen import AsJson, console, print_json, say, show, show_table
from registry_serve.persistent import statuses
from registry_serve.rollout import DeploymentStatus

get = typer.Typer(no_args_is_help=True, help="List what is deployed, or print a deployment's logs.")
describe = typer.Typer(no_args_is_help=True, help="Tell everything about one deployment.")
_deployment = typer.Typer(no_args_is_help=True, help="Of one deployment.")
get.add_typer(_deployment, name="deployment")

#: Seconds in a unit of time, the largest first.
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
#: How long `describe` waits for what the endpoint tells of its model.
_DESCRIBED_WITHIN_S = 10.0
#: What is shown of each replica of a persistent deployment.
_FACTS = ("requests", "process", "node")


@get.command("deployments")
def get_deployments(as_json: AsJson = False) -> None:
    """List what is deployed, persistent deployments of language models included."""
    found = [*rollout.deployments(), *statuses.deployments()]
    if as_json:
        print_json([facts(each) for each in found])
    elif not found:
        say("Nothing is deployed. `registry-serve deploy -f FILE` deploys what a file describes.")
    else:
        rows = [(each.name, each.state, ready(each), each.serves, each.url, age(each.deployed)) for each in found]
        show_table(("name", "state", "ready", "serves", "url", "age"), rows)


@_deployment.command("logs")
def get_deployment_logs(
    name: Annotated[str, typer.Argument(help="Of the deployment.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written from now on.")] = False,
    tail: Annotated[
        int | None, typer.Option(help="Only the last N lines.", metavar="N", min=0, show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what the replicas of a deployment have written."""
    statuses.require_of_a_file(name)
    for line in rollout.logs(name, tail=tail, follow=follow):
        if as_json:
            typer.echo(json.dumps({"line": line}))
        else:
            console.out(line, highlight=False)


@describe.command("deployment")
def describe_deployment(
    name: Annotated[str, typer.Argument(help="Of the deployment.")],
    as_json: AsJson = False,
) -> None:
    """Tell how a deployment is, what it was deployed from, and which model it serves."""
    if name in statuses.names() and name not in rollout.names():
        _describe_persistent(name, as_json=as_json)
        return
    running = rollout.running(name)
    status = running.status()
    model = None
    if status.state != "stopped":  # something else may answer there by now
        model = Endpoint(running.url, api_key_file=running.api_key_file, timeout_s=_DESCRIBED_WITHIN_S).described()
    if as_json:
        print_json({**facts(status), "model": model})
        return
    _show(status)
    if model is not None:
        _show_model(model)


def _describe_persistent(name: str, *, as_json: bool) -> None:
    """Tell of a persistent deployment what ``describe_deployment`` does of others, and what its replicas do."""
    status = statuses.status(name)
    replicas = [] if status.state == "stopped" else statuses.replicas(name)
    if as_json:
        print_json({**facts(status), "model": None, "seats": replicas})
        return
    _show(status)
    if replicas:
        rows = [
            (str(each["number"]), "yes" if each["up"] else "no", *(_known(each[fact]) for fact in _FACTS))
            for each in replicas
        ]
        show_table(("replica", "up", *_FACTS), rows)


def _known(fact: Any) -> str:
    return "" if fact is None else str(fact)


def _show(status: DeploymentStatus) -> None:
    told = {
        "state": status.state,
        "replicas": ready(status),
        "serves": status.serves,
        "url": status.url,
        "deployed": f"{status.deployed.isoformat(' ', 'seconds')} ({age(status.deployed)} ago)",
    }
    show(status.name, {**told, "message": status.message} if status.message else told)
    say(f"\nDeployed from:\n\n{_yaml(status.file)}")


def _show_model(model: Mapping[str, Any]) -> None:
    """Show what an endpoint tells of its model, as far as it matters to who calls it."""
    told = {"default version": model["default_version"], "allowed": model["allowed_versions"]}
    show(f"Model {model['name']}", told if model["registry_reachable"] else {**told, "registry": "it does not answer"})
    rows = [
        (
            each["version"],
            ", ".join(f"@{alias}" for alias in each["aliases"]),
            each["state"],
            "yes" if each["compatible"] else _why_not(each),
        )
        for each in model["versions"]
    ]
    show_table(("version", "aliases", "state", "served"), rows)


def _why_not(version: Mapping[str, Any]) -> str:
    reasons = "; ".join(each["message"] for each in version["differences"]) or version["unavailable"]
    return f"no: {reasons}" if reasons else "unknown"


def facts(status: DeploymentStatus) -> dict[str, Any]:
    """Return a status ready for JSON."""
    return {**asdict(status), "deployed": status.deployed.isoformat()}


def ready(status: DeploymentStatus) -> str:
    """Say how many replicas are ready, and how many there are to be."""
    return f"{status.replicas_ready} of {status.replicas}"


def age(since: datetime) -> str:
    """Say how long ago something was, in one unit."""
    seconds = max(0.0, (datetime.now(timezone.utc) - since).total_seconds())
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{seconds // size:.0f} {unit}"


def _yaml(value: Any) -> str:
    # Through JSON, since YAML has tags for Python's own kinds of mappings and sequences.
    plain = json.loads(json.dumps(value, default=str))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return "".join(f"    {line}\n" for line in text.splitlines())
