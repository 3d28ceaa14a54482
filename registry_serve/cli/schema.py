"""``registry-serve schema``: what a deployment file may hold, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from registry_serve.cli.screen import console
from registry_serve.deployment_file import json_schema
from registry_serve.errors import ConfigurationError


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON Schema of the deployment file, with which an editor completes and checks it."""
    text = json.dumps(json_schema(), indent=2)
    if output is None:
        console.out(text, highlight=False)
        return
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}.") from None
