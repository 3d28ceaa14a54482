"""What the replicas of a deployment have logged."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from registry_serve.errors import ConfigurationError
from registry_serve.rollout import records
from registry_serve.rollout.records import Record

_POLL_S = 0.3


def logs(name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
    """Return the lines that a deployment's replicas have logged, those of replicas that are gone included.

    Where there are several replicas, each line begins with the replica's id.

    Args:
        name: of the deployment.
        tail: only so many of the last lines of each replica.
        follow: go on with the lines that come, for ever.

    Raises:
        DeploymentNotFound: there is none of that name.
        ConfigurationError: the logs are on another machine.
    """
    record = records.get(name)
    folder = Path(record.session, "logs", "serve")
    if not folder.is_dir():
        raise ConfigurationError(f"The logs of {name} are not on this machine: {folder} is not there.")
    return _lines(record, folder, tail, follow)


def _lines(record: Record, folder: Path, tail: int | None, follow: bool) -> Iterator[str]:
    opened: dict[Path, TextIO] = {}
    try:
        while True:
            for path in _files(record, folder):
                new = path not in opened
                file = opened.setdefault(path, path.open(encoding="utf-8", errors="replace")) if new else opened[path]
                lines = deque(file, maxlen=tail) if new and tail is not None else file
                label = f"[{_replica(path)}] " if len(opened) > 1 or len(_files(record, folder)) > 1 else ""
                yield from (label + line.rstrip("\n") for line in lines if line.strip())
            if not follow:
                return
            time.sleep(_POLL_S)
    finally:
        for file in opened.values():
            file.close()


def _files(record: Record, folder: Path) -> list[Path]:
    """Return the files of the replicas since the deployment was first made, oldest first."""
    since = record.created.timestamp()
    own = re.compile(rf"replica_{re.escape(record.name)}_{re.escape(record.deployment)}_[a-z0-9]+\.log")
    found = [each for each in folder.glob(f"replica_{record.name}_*.log") if own.fullmatch(each.name)]
    return sorted((each for each in found if each.stat().st_mtime >= since), key=lambda each: each.stat().st_ctime)


def _replica(path: Path) -> str:
    return path.stem.rpartition("_")[2]
