"""The ``registry-serve`` command."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from registry_serve.errors import ConfigurationError, RegistryServeError
from registry_serve.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
console = Console()
errors = Console(stderr=True, style="red", soft_wrap=True, highlight=False, markup=False)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__, highlight=False)
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

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_stage(name: str, fraction: float) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=1.0)
            progress.update(bars[name], completed=fraction)

        registry = build(folder, from_hub=from_hub, progress=on_stage)
    console.print(f"The demo registry is {registry.tracking_uri}", soft_wrap=True, highlight=False)
    if serve:
        _serve_demo(registry.tracking_uri, list(registry.versions), port)
    else:
        command = f"MLFLOW_TRACKING_URI={registry.tracking_uri} serve run registry_serve:app"
        console.print(f"Serve it with:\n\n    {command}", soft_wrap=True, highlight=False)


def _serve_demo(tracking_uri: str, models: list[str], port: int) -> None:
    """Serve the demo's models on one small cluster, until somebody presses Ctrl-C."""
    _require_free(port)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve as ray_serve

    from registry_serve.deployment import deployment_from_model_name

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with console.status("Starting Ray Serve and loading the models"):
        ray.init(num_cpus=len(models) + 1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        for model in models:
            prefix = "/" if model == models[0] else f"/{model}"
            ray_serve.run(
                deployment_from_model_name(model, tracking_uri=tracking_uri).bind(), name=model, route_prefix=prefix
            )
    console.print(_what_to_try(f"http://127.0.0.1:{port}"), soft_wrap=True, highlight=False, markup=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("Stopping.")
    finally:
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigurationError(f"Port {port} is taken. Name a free one with --port.") from None


def _what_to_try(address: str) -> str:
    sentence = """-d '{"prompt": "The weather is lovely today"}'"""
    question = """-d '{"question": "Where do you live?"}'"""
    instruction = """-d '{"inputs": {"prompt": "What is machine learning?"}, "params": {"temperature": 0.6}}'"""
    return f"""
Serving at {address}. In another terminal, try:

    curl {address}/serve {sentence}
    curl {address}/serve {sentence} -H 'serve_multiplexed_model_id: 2'
    curl {address}/serve {sentence} -H 'serve_multiplexed_model_id: 3'
    curl {address}/question_answerer/serve {question}
    curl {address}/instruct_llm/serve {instruction}

In a browser: {address}/docs
Ctrl-C ends it.
"""


def main() -> None:
    """Run the command; an error of ours is one line, and exit code 1."""
    try:
        app()
    except RegistryServeError as error:
        errors.print(f"error: {error}")
        raise SystemExit(1) from None
