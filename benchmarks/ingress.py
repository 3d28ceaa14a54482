"""Ray Serve's fast way in: for registry_serve by its own command, for the other applications with its settings."""

from __future__ import annotations

import functools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.places import REGISTRY_URI, REPOSITORY
from registry_serve import launch
from registry_serve.policies import Limits


@dataclass(frozen=True)
class Launch:
    """How to start a server.

    Attributes:
        command: program and arguments.
        variables: added to the environment.
    """

    command: list[str]
    variables: dict[str, str] = field(default_factory=dict)


_COMMON = {"MLFLOW_TRACKING_URI": REGISTRY_URI, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def registry_serve(model: str, port: int, *options: str, variables: dict[str, str] | None = None) -> Launch:
    """Return ``registry-serve run`` for version 1 of a model."""
    program = str(Path(sys.executable).parent / "registry-serve")
    command = [program, "run", f"{model}/1", "--port", str(port), *options]
    return Launch(command, {**_COMMON, **(variables or {})})


def application(builder: str, model: str, port: int) -> Launch:
    """Return what serves another application, ``MODULE:FUNCTION``, under the settings of ``registry-serve run``."""
    plan = launch.Launch(applications=(), port=port)
    fast = launch.fast_environment(Path(_folder().name), plan, Limits().max_body_bytes)
    settings = {name: value for name, value in fast.items() if name.startswith("RAY_")}
    command = [sys.executable, "-m", "benchmarks.apps.cluster", builder, str(port), f"model={model}"]
    return Launch(command, {**settings, **_COMMON})


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    # Ray and HAProxy add much to the path of a socket, which must be short; one cluster runs at a time.
    return tempfile.TemporaryDirectory(prefix="bench", dir="/tmp")
