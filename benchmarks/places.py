"""Where the benchmarks keep what they build."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
#: Environments of the peers, the registry, logs and raw results; not in version control.
WORK = REPOSITORY / ".bench"
LOGS = WORK / "logs"
REGISTRY = WORK / "registry"
REGISTRY_URI = f"sqlite:///{REGISTRY / 'mlflow.db'}"
#: Models that count their loads write one line for each here.
LOADS = REGISTRY / "loads.txt"
