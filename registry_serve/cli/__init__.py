"""The ``registry-serve`` command."""

from __future__ import annotations

from typing import Annotated

import typer

from registry_serve.cli import demo, run
from registry_serve.cli.screen import console, errors
from registry_serve.cli.serving import INTERRUPTED
from registry_serve.errors import RegistryServeError
from registry_serve.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.command()(run.run)
app.command()(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def registry_serve(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Take models in an MLflow registry online, on Ray Serve."""


def main() -> None:
    """Run the command; an error of ours is one line, and exit code 1."""
    try:
        raise SystemExit(app(standalone_mode=False))
    except RegistryServeError as error:
        errors.print(f"error: {error}")
    except typer.TyperException as error:
        if message := error.format_message():  # none where help was shown instead
            errors.print(f"error: {message}")
    except typer.Abort:  # Ctrl-C before anything was served
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(1)
