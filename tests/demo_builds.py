"""One build of the demo registry for the whole run: interrupted at first, then made by two builders at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import pytest

from registry_serve.demo import DemoRegistry, build
from registry_serve.demo.registry import is_complete


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


class History:
    """How the registry came about: what was reported, and MLflow's global addresses before and after."""

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}
        self.complete_after_interruption: bool | None = None
        self.registries: list[DemoRegistry] = []
        self.before = addresses()
        self.after: Any = None

    def interrupt(self, stage: str, fraction: float) -> None:
        if stage == "Training the translator":
            raise Interrupted

    def note(self, stage: str, fraction: float) -> None:
        self.stages.setdefault(stage, []).append(fraction)


def addresses() -> tuple[str, str, dict[str, str]]:
    settings = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return mlflow.get_tracking_uri(), mlflow.get_registry_uri(), settings


@pytest.fixture(scope="session")
def demo_history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Build once in a folder with a space: first interrupted in its course, then by two builders at once."""
    folder = tmp_path_factory.mktemp("demo") / "a registry"
    history = History()
    with pytest.raises(Interrupted):
        build(folder, progress=history.interrupt)
    history.complete_after_interruption = is_complete(folder, from_hub=False)
    with ThreadPoolExecutor() as pool:
        history.registries = list(pool.map(lambda note: build(folder, progress=note), [history.note] * 2))
    history.after = addresses()
    return history


@pytest.fixture(scope="session")
def demo_registry(demo_history: History) -> DemoRegistry:
    return demo_history.registries[0]
