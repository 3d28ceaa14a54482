"""The process that builds the demo registry; ``registry.py`` starts it and reads its messages.

It writes one JSON object per line to its standard output: ``{"stage": ..., "fraction": ...}`` while it works, and
``{"failure": ...}`` for what the user can mend. Anything else ends in a traceback on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from registry_serve.demo import hub, instruct, question_answering, registration, translation
from registry_serve.demo.registry import (
    ARTIFACTS,
    DATABASE,
    LOCK,
    MARKER,
    SNAPSHOTS,
    STARTING,
    Progress,
    is_complete,
    marker_of,
)
from registry_serve.demo.training import Report
from registry_serve.errors import ConfigurationError

LONGEST_WAIT_S = 3600  # for another process that builds in the same folder; downloads take their time

TRAININGS: dict[str, tuple[str, Callable[[Path, Report], None]]] = {
    "translation": ("Training the translator", translation.create),
    "question_answering": ("Training the question answerer", question_answering.create),
    "instruct": ("Training the language model", instruct.create),
}


def main() -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from-hub", action="store_true")
    arguments = parser.parse_args()
    send = _sender()

    def progress(stage: str, fraction: float) -> None:
        send(stage=stage, fraction=fraction)

    progress(STARTING, 1.0)
    try:
        build(arguments.folder, arguments.from_hub, progress)
    except ConfigurationError as error:
        send(failure=str(error))
    return 0


def build(folder: Path, from_hub: bool, progress: Progress) -> None:
    """Build the registry from scratch, unless another process has just done so."""
    with _only_builder(folder, progress):
        if is_complete(folder, from_hub=from_hub):
            return
        # Downloads come before anything is deleted: where the hub does not answer, an earlier registry lives on.
        downloaded = hub.download(functools.partial(progress, "Downloading from the hub")) if from_hub else {}
        _wipe(folder)
        with ThreadPoolExecutor(max_workers=2) as workers:
            trained = {} if from_hub else _train(workers, folder / SNAPSHOTS, progress)
            progress("Creating the registry", 0.0)
            client = registration.create(folder)
            progress("Creating the registry", 1.0)
            snapshots = downloaded | {name: job.result() for name, job in trained.items()}
        registration.fill(client, snapshots, functools.partial(progress, "Registering the models"))
        shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)
        _finish(folder, from_hub)


def _train(workers: Executor, folder: Path, progress: Progress) -> dict[str, Future[Path]]:
    """Train the small models side by side, each into a folder of its own."""

    def trained(name: str, stage: str, create: Callable[[Path, Report], None]) -> Path:
        create(folder / name, functools.partial(progress, stage))
        return folder / name

    return {name: workers.submit(trained, name, stage, create) for name, (stage, create) in TRAININGS.items()}


def _sender() -> Callable[..., None]:
    """Take standard output for messages, and leave standard error to whoever prints."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    writing = threading.Lock()

    def send(**message: Any) -> None:
        with writing:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    return send


@contextlib.contextmanager
def _only_builder(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock: SQLite's own, which works everywhere and is freed when its holder dies."""
    with contextlib.closing(sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            progress("Waiting for another build", 0.0)
            lock.execute(f"PRAGMA busy_timeout = {LONGEST_WAIT_S * 1000}")
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                raise ConfigurationError(
                    f"Another process has been building the demo in {folder} for an hour: {error}."
                ) from error
            progress("Waiting for another build", 1.0)
        yield


def _wipe(folder: Path) -> None:
    """Delete what an earlier build left. The marker goes first, so that what is half deleted never looks whole."""
    (folder / MARKER).unlink(missing_ok=True)
    for database in folder.glob(f"{DATABASE}*"):
        database.unlink()
    for name in (ARTIFACTS, SNAPSHOTS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _finish(folder: Path, from_hub: bool) -> None:
    unfinished = folder / f"{MARKER}.part"
    unfinished.write_text(json.dumps(marker_of(folder, from_hub=from_hub)), "utf-8")
    unfinished.replace(folder / MARKER)


if __name__ == "__main__":
    sys.exit(main())
