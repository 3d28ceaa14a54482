"""One virtual environment for each peer, so that nobody's pins decide for another."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.places import WORK

#: Exact versions: a newer release is another measurement.
PACKAGES = {
    "mlflow": ["mlflow==3.17.2", "scikit-learn"],
    "mlserver": ["mlserver==1.7.1", "mlserver-mlflow==1.7.1", "mlflow==3.17.2", "scikit-learn"],
    "litserve": ["litserve==0.2.19", "mlflow==3.17.2", "scikit-learn"],
    "bentoml": ["bentoml==1.4.39", "mlflow==3.17.2", "scikit-learn"],
    "chart": ["matplotlib"],
}


def program(environment: str, name: str = "python") -> str:
    """Return the path of a program in an environment."""
    return str(WORK / environment / "bin" / name)


def exists(environment: str) -> bool:
    """Say whether an environment was built to its end."""
    return _stamp(environment).exists()


def build(environment: str) -> None:
    """Make an environment unless it is there.

    Raises:
        CalledProcessError: pip failed; it has said why.
    """
    if exists(environment):
        return
    venv.create(WORK / environment, with_pip=True, clear=True)
    pip = [program(environment), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES[environment]], check=True)
    _stamp(environment).touch()


def versions(environment: str) -> dict[str, str]:
    """Return what is installed of what was asked for, and the Python it runs on."""
    names = [spec.split("==")[0] for spec in PACKAGES[environment]]
    code = f"import importlib.metadata as m\nfor n in {names!r}: print(n, m.version(n))"
    lines = subprocess.run([program(environment), "-c", code], capture_output=True, text=True, check=True).stdout
    return {"python": sys.version.split()[0]} | dict(line.split() for line in lines.splitlines())


def _stamp(environment: str) -> Path:
    return WORK / environment / f"installed-{'-'.join(PACKAGES[environment])}"
