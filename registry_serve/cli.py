"""The ``registry-serve`` command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from registry_serve.errors import ConfigurationError, RegistryServeError
from registry_serve.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
console = Console()


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def registry_serve(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Take models in an MLflow registry online, on Ray Serve."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the registry is kept.")] = Path(".demo"),
    from_hub: Annotated[
        bool, typer.Option(help="Use models from the Hugging Face hub, not ones trained here.")
    ] = False,
    serve: Annotated[bool, typer.Option(help="Serve it, until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 8000,
) -> None:
    """Build a toy registry of real, tiny language models; a minute the first time, then it is kept."""
    from registry_serve.demo import build

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("Building the demo registry", total=1.0)

        def on_stage(name: str, fraction: float) -> None:
            progress.update(task, description=name, completed=fraction)

        registry = build(folder.absolute(), from_hub=from_hub, progress=on_stage)
        progress.update(task, description="The demo registry is ready", completed=1.0)
    console.print(f"Registry: [bold]{registry.tracking_uri}[/bold]", soft_wrap=True)
    if serve:
        _serve_demo(registry.tracking_uri, port)
    else:
        command = f"MLFLOW_TRACKING_URI={registry.tracking_uri} serve run registry_serve:app"
        console.print(f"Serve it: [bold]{command}[/bold]", soft_wrap=True, highlight=False)


def _serve_demo(tracking_uri: str, port: int) -> None:
    """Serve the three demo models on one small cluster, until somebody presses Ctrl-C."""
    import os
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigurationError(f"Port {port} is taken. Name a free one with --port.") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve as ray_serve

    from registry_serve.deployment import deployment_from_model_name

    with console.status("Starting Ray Serve and loading the models"):
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        for model in ("translation_model", "question_answerer", "instruct_llm"):
            deployment = deployment_from_model_name(model, tracking_uri=tracking_uri)
            prefix = "/" if model == "translation_model" else f"/{model}"
            ray_serve.run(deployment.bind(), name=model, route_prefix=prefix)
    console.print(Panel(_what_to_try(f"http://127.0.0.1:{port}"), title="Serving", expand=False))
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        with console.status("Stopping"):
            ray_serve.shutdown()
            ray.shutdown()


def _what_to_try(address: str) -> str:
    sentence = """-H 'content-type: application/json' -d '{"prompt": "The weather is lovely today"}'"""
    question = """-H 'content-type: application/json' -d '{"question": "Where do you live?"}'"""
    return "\n".join(
        [
            "In another terminal:",
            "",
            f"curl {address}/serve {sentence}",
            f"curl {address}/serve -H 'serve_multiplexed_model_id: 2' {sentence}",
            f"curl {address}/serve -H 'serve_multiplexed_model_id: 3' {sentence}",
            f"curl {address}/question_answerer/serve {question}",
            "",
            f"In a browser: {address}/docs",
            "Ctrl-C stops it.",
        ]
    )


def main() -> None:
    """Run the command; an error of ours is one line, and exit code 1."""
    try:
        app()
    except RegistryServeError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True, highlight=False)
        raise SystemExit(1) from None
