"""The ``registry-serve`` command."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from registry_serve.cli import asking, census, configfile, demo, deploying, doctor, registry, run, schema, status
from registry_serve.cli.screen import console, errors
from registry_serve.cli.serving import INTERRUPTED
from registry_serve.errors import RegistryServeError
from registry_serve.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.command()(run.run)
app.command()(demo.demo)
app.command()(registry.models)
app.command()(registry.versions)
app.command()(registry.diff)
app.command()(census.check)
app.command()(doctor.doctor)
app.command()(configfile.config)
app.command()(deploying.deploy)
app.add_typer(status.get, name="get")
app.add_typer(status.describe, name="describe")
app.command()(asking.ping)
app.command()(asking.predict)
app.add_typer(deploying.update, name="update")
app.add_typer(deploying.stop, name="stop")
app.add_typer(deploying.delete, name="delete")
app.command()(schema.schema)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def registry_serve(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Take models in an MLflow registry online, on Ray Serve."""


def main() -> None:
    """Run the command; an error is one line, and exit code 1."""
    # Read here and not where options are parsed: that may be what goes wrong.
    debug, as_json = "--debug" in sys.argv, "--json" in sys.argv
    try:
        raise SystemExit(app(prog_name="registry-serve", standalone_mode=False))
    except typer.Abort:  # Ctrl-C before anything was served
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        code, message = _told(error)
        if not message:  # help was shown instead
            raise SystemExit(1) from None
        if debug:
            raise
        if as_json:
            sys.stderr.write(json.dumps({"error": message, "code": code}) + "\n")
        else:
            errors.print(f"error: {message}")
    raise SystemExit(1)


def _hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f" See {context.command_path} --help." if context is not None else ""


def _told(error: Exception) -> tuple[str, str]:
    """Return a stable word for what went wrong, and a sentence."""
    if isinstance(error, RegistryServeError):
        return error.code, str(error)
    if isinstance(error, typer.TyperException):
        return "usage_error", error.format_message() and f"{error.format_message().rstrip('.')}.{_hint(error)}"
    name, line = type(error).__name__, " ".join(["registry-serve --debug", *sys.argv[1:2], "..."])
    return "internal_error", f"This went wrong in a way that was not foreseen: {name}. See where with: {line}"
