"""The demo registry: an MLflow registry in one folder, built once and then found there.

It holds ``translation_model`` (1: German, 2: French, 3: German with an incompatible signature), ``question_answerer``
and ``instruct_llm``. The build runs in a process of its own (``builder.py``), so that MLflow's global addresses, the
logging of three libraries and torch's threads stay as they were in the process that asked for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from registry_serve.errors import ConfigurationError

#: Told the name of a stage and how much of it is done, from 0 to 1. Stages overlap: each name is a bar of its own.
Progress = Callable[[str, float], None]

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
SNAPSHOTS = "snapshots"  # of the models, until they are logged
MARKER = "demo.json"  # written last
LOCK = "demo.lock"  # written first: also the sign that the other names in the folder are ours to delete

STARTING = "Importing MLflow and Transformers"  # the first stage; it ends with the builder's first message

VERSIONS = {"translation_model": ("1", "2", "3"), "question_answerer": ("1",), "instruct_llm": ("1",)}


@dataclass(frozen=True)
class DemoRegistry:
    """A registry that is ready to be served.

    Attributes:
        folder: the folder with everything in it; it must stay where it is.
        tracking_uri: MLflow's address of it, for tracking and registry alike.
        versions: the registered models and the numbers of their versions.
    """

    folder: Path
    tracking_uri: str
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(VERSIONS))


def build(registry_folder: Path, *, from_hub: bool = False, progress: Progress | None = None) -> DemoRegistry:
    """Build the demo registry in a folder, or find the one that is already there.

    A build that was interrupted, or made by another release, is replaced. Processes that build in one folder at once
    wait for each other.

    Args:
        registry_folder: created if need be. Nothing in it is touched but what an earlier build left.
        from_hub: register full-size models from the Hugging Face hub instead of training small ones.
        progress: told how far the build is.

    Raises:
        ConfigurationError: Transformers is not installed, the folder cannot be used, or the hub does not answer.
    """
    folder = Path(registry_folder).expanduser().resolve()
    found = DemoRegistry(folder, f"sqlite:///{(folder / DATABASE).as_posix()}")
    if is_complete(folder, from_hub=from_hub):
        return found
    _require_transformers()
    _claim(folder)
    _build_in_another_process(folder, from_hub, progress or _ignore)
    return found


def is_complete(folder: Path, *, from_hub: bool) -> bool:
    """Say whether the folder holds a finished registry of this recipe, at the address it was built for."""
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(marker == marker_of(folder, from_hub=from_hub)) and (folder / DATABASE).is_file()


def marker_of(folder: Path, *, from_hub: bool) -> dict[str, Any]:
    """Return what a finished build writes down. The folder is part of it: MLflow stores absolute paths."""
    recipe = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        recipe.update(source.read_bytes())
    return {
        "folder": str(folder),
        "from_hub": from_hub,
        "recipe": recipe.hexdigest(),
        "made_with": {
            package: importlib.metadata.version(package) for package in ("mlflow-skinny", "tokenizers", "transformers")
        },
    }


def _require_transformers() -> None:
    missing = [name for name in ("tokenizers", "torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"The demo's models need {', '.join(missing)}: pip install 'registry-serve[transformers]'."
        )


def _claim(folder: Path) -> None:
    """Create the folder and its lock file, unless it holds somebody else's registry."""
    if not (folder / LOCK).exists():
        for name in (DATABASE, ARTIFACTS, SNAPSHOTS):
            if (folder / name).exists():
                raise ConfigurationError(
                    f"{folder} already has a {name!r} that is not the demo's. Choose another folder for the demo."
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise ConfigurationError(f"The demo cannot be built in {folder}: {error.strerror}.") from error


def _build_in_another_process(folder: Path, from_hub: bool, progress: Progress) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "registry_serve.demo.builder", str(folder)]
    if from_hub:
        command.append("--from-hub")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with _process(command, folder, log) as process:
            failure = _follow(process, progress)
        if failure is not None:
            raise ConfigurationError(failure)
        if process.returncode != 0:
            log.seek(0)
            last_lines = "".join(log.readlines()[-20:])
            raise RuntimeError(f"Building the demo registry failed (exit status {process.returncode}).\n{last_lines}")


@contextlib.contextmanager
def _process(command: list[str], folder: Path, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the builder; whatever happens here, it does not outlive the block."""
    process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
        command,
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
    )
    try:
        yield process
        process.wait()
    finally:
        process.kill()  # nothing happens to a process that has ended
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _follow(process: subprocess.Popen[str], progress: Progress) -> str | None:
    """Pass the builder's messages on until it ends, and return its complaint, if it has one that a user can mend."""
    failure = None
    progress(STARTING, 0.0)
    for line in process.stdout or ():
        message = json.loads(line)
        if "failure" in message:
            failure = message["failure"]
        else:
            progress(message["stage"], message["fraction"])
    return failure


def _environment() -> dict[str, str]:
    """Return the environment for the builder: the caller's, without settings that would change what is built."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = [os.path.abspath(entry) for entry in sys.path]
    return environment | {
        "PYTHONPATH": os.pathsep.join(path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Three models train side by side, and ones this small gain nothing from more threads each.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _ignore(stage: str, fraction: float) -> None:
    """Report to nobody."""
