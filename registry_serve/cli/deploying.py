"""``registry-serve deploy``, ``update``, ``stop`` and ``delete``: what changes deployments."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from registry_serve import rollout
from registry_serve.cli.access import LOOPBACK, authorization_in_shell, require_a_decision
from registry_serve.cli.endpoint import Endpoint
from registry_serve.cli.screen import AsJson, console, print_json, progress, say, show
from registry_serve.cli.status import facts, ready
from registry_serve.errors import ConfigurationError, DeploymentNotFound
from registry_serve.persistent import statuses
from registry_serve.rollout import DeploymentStatus

update = typer.Typer(no_args_is_help=True, help="Change a deployment while it serves.")
stop = typer.Typer(no_args_is_help=True, help="Take deployments offline, and keep what they were deployed from.")
delete = typer.Typer(no_args_is_help=True, help="Take deployments offline, and forget them.")

#: Longer examples make no line that anybody would paste.
_LONGEST_EXAMPLE = 1000

Replicas = Annotated[
    int | None, typer.Option(help="Copies of the model that answer at the same time.", min=1, show_default=False)
]
Names = Annotated[list[str], typer.Argument(metavar="NAME|GLOB...", help="Of deployments; 'demo-*' names several.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]


def deploy(
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The deployment file.")],
    replicas: Replicas = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of each replica; a fraction shares one.", min=0, show_default=False)
    ] = None,
    gpu_type: Annotated[
        str | None, typer.Option(help="Which GPUs, as in the file: a100_40gb.", show_default=False)
    ] = None,
    image: Annotated[str | None, typer.Option(help="The container image, as in the file.", show_default=False)] = None,
    use_image: Annotated[bool, typer.Option("--use-image", help="Run the replicas in that image.")] = False,
    allow_command: Annotated[
        bool, typer.Option("--allow-command", help="Run the file's `command`, which may do anything.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of API keys, of which clients must send one.", show_default=False)
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in who reaches --host.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Come back before it answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deploy what a file describes, and come back when it answers."""
    host = LOOPBACK if host == "localhost" else host
    require_a_decision(host, api_key_file, no_auth)
    with _progress() as tell:
        running = rollout.deploy(
            file,
            replicas=replicas,
            gpus=gpus,
            gpu_type=gpu_type,
            image=image,
            use_image=use_image,
            allow_command=allow_command,
            host=host,
            port=port,
            api_key_file=api_key_file,
            on_progress=tell,
            wait=not no_wait,
        )
    status = running.status()
    if as_json:
        print_json(facts(status))
        return
    _announce(status)
    if no_wait:
        say(f"It is not waited for: `registry-serve describe deployment {status.name}` tells how far it is.")
    else:
        say(f"Try it:\n\n    {curl(status, api_key_file)}\n")
    say(f"It serves until `registry-serve stop deployment {status.name}`.")


@update.command("deployment")
def update_deployment(
    name: Annotated[str, typer.Argument(help="Of the deployment.")],
    replicas: Replicas = None,
    image: Annotated[str | None, typer.Option(help="The container image of the replicas.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Give a deployment more or fewer replicas, or another image; or bring back one that is stopped."""
    statuses.require_of_a_file(name)
    if replicas is None and image is None and rollout.status(name).state == "running":
        raise ConfigurationError(f"{name} runs, and nothing of it is to be changed. Give --replicas N or --image NAME.")
    with _progress() as tell:
        status = rollout.update(name, replicas=replicas, image=image, on_progress=tell)
    if as_json:
        print_json(facts(status))
    else:
        _announce(status)


@stop.command("deployment")
@stop.command("deployments", hidden=True)
def stop_deployment(names: Names, yes: Yes = False, as_json: AsJson = False) -> None:
    """Take deployments offline, once requests in flight are answered; `update` brings them back."""
    for name in names:
        statuses.require_of_a_file(name)
    _end(rollout.stop, "stop", "stopped", names, yes=yes, as_json=as_json)


@delete.command("deployment")
@delete.command("deployments", hidden=True)
def delete_deployment(names: Names, yes: Yes = False, as_json: AsJson = False) -> None:
    """Take deployments offline, once requests in flight are answered (persistent ones: at once), and forget them."""
    _end(_delete, "delete", "deleted", names, yes=yes, as_json=as_json, persistent=statuses.names())


def _delete(name: str, on_progress: Callable[[str], None]) -> None:
    """Delete a deployment of a file, or a persistent one."""
    (rollout.delete if name in rollout.names() else statuses.delete)(name, on_progress)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show what is being done; what is to be noticed is said in whole sentences, and stays."""
    log = logging.getLogger("ray.serve")  # tells the same in its own words
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with progress() as doing:
            yield lambda told: say(told) if told.endswith(".") else doing(told)
    finally:
        log.setLevel(level)


def _announce(status: DeploymentStatus) -> None:
    told = {"state": status.state, "replicas": ready(status), "serves": status.serves, "url": status.url}
    show(f"Deployment {status.name}", {**told, "message": status.message} if status.message else told)


def curl(status: DeploymentStatus, api_key_file: Path | None) -> str:
    """Return a line for a shell that asks the deployment for its own example."""
    key = authorization_in_shell(api_key_file)
    example = Endpoint(status.url, api_key_file=api_key_file).example()
    written = "" if example is None else json.dumps(example[1], ensure_ascii=False)
    if example is None or len(written) > _LONGEST_EXAMPLE:
        return f"curl {status.url}/model{key}"
    return f"curl {status.url}{example[0]} -d {shlex.quote(written)}{key}"


def _end(
    end: Callable[[str, Callable[[str], None]], None],
    doing: str,
    done: str,
    names: Sequence[str],
    *,
    yes: bool,
    as_json: bool,
    persistent: Sequence[str] = (),
) -> None:
    meant = _meant(names, persistent)
    if len(meant) > 1 and not yes and not _agreed(doing, meant):
        raise ConfigurationError(f"Nothing was {done}. Give --yes to {doing} {', '.join(meant)}.")
    for name in meant:
        with _progress() as tell:
            end(name, tell)
        say(f"{name} is {done}.")
    if as_json:
        print_json({done: meant})


def _meant(names: Sequence[str], persistent: Sequence[str]) -> list[str]:
    """Return the names of deployments that names and globs mean, each once.

    Args:
        names: and globs.
        persistent: names of persistent deployments, where they are meant, too.

    Raises:
        DeploymentNotFound: one of them means none.
    """
    # Also of those whose records cannot be read: that is a way to be rid of them.
    there = [*rollout.names(), *persistent]
    meant: dict[str, None] = {}
    for name in names:
        found = [each for each in there if fnmatchcase(each, name)]
        if not found:
            raise DeploymentNotFound(name, there)
        meant.update(dict.fromkeys(found))
    return list(meant)


def _agreed(doing: str, names: Sequence[str]) -> bool:
    if not (sys.stdin.isatty() and console.is_terminal):
        return False
    return typer.confirm(f"{doing.capitalize()} {len(names)} deployments ({', '.join(names)})?", err=True)
