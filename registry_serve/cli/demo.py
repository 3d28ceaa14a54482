"""``registry-serve demo``: a toy registry, and what to try on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from registry_serve.cli.screen import AsJson, console, print_json, say
from registry_serve.cli.serving import local_address, serve_until_stopped
from registry_serve.launch import Launch, ServedApplication, require_free
from registry_serve.policies import Limits


def demo(
    folder: Annotated[Path, typer.Option(help="Where the registry is kept.")] = Path(".demo"),
    from_hub: Annotated[
        bool, typer.Option(help="Use models from the Hugging Face hub, not ones trained here.")
    ] = False,
    serve: Annotated[bool, typer.Option(help="Serve it, until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 8000,
    as_json: AsJson = False,
) -> None:
    """Build a toy registry of real, tiny language models; a minute the first time, then it is kept."""
    from registry_serve.demo import build

    if serve:
        require_free(Launch(applications=()).host, port)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_stage(name: str, fraction: float) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=1.0)
            progress.update(bars[name], completed=fraction)

        registry = build(folder, from_hub=from_hub, progress=on_stage)
    say(f"The demo registry is {registry.tracking_uri}")
    models = list(registry.versions)
    if serve:
        _serve(registry.tracking_uri, models, port, as_json)
    elif as_json:
        print_json({"tracking_uri": registry.tracking_uri, "models": models})
    else:
        command = f"MLFLOW_TRACKING_URI={registry.tracking_uri} registry-serve run {models[0]}"
        say(f"Serve one of its models with:\n\n    {command}")


def _serve(tracking_uri: str, models: list[str], port: int, as_json: bool) -> None:
    """Serve the demo's models on one small cluster, the first of them at the root."""
    launch = Launch(
        applications=tuple(
            ServedApplication(
                name=model,
                route_prefix="/" if model == models[0] else f"/{model}",
                args={"model": model, "version": "1", "tracking_uri": tracking_uri},
            )
            for model in models
        ),
        port=port,
    )

    def announce(logs: str) -> None:
        address = local_address(launch)
        if as_json:
            print_json({"address": address, "tracking_uri": tracking_uri, "models": models, "logs": logs})
        else:
            say(_what_to_try(address))

    serve_until_stopped(launch, announce, max_body_bytes=Limits().max_body_bytes)


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
