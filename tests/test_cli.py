"""The command line, as a person types it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from registry_serve import __version__

COMMAND = Path(sys.executable).parent / "registry-serve"


def run(*arguments, **options):
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False, **options
    )


def test_the_version_is_told():
    assert run("--version").stdout.strip() == __version__


def test_help_names_every_command():
    told = run("--help")
    assert told.returncode == 0
    assert "demo" in told.stdout
    assert {"--folder", "--from-hub", "--serve", "--port"} <= set(run("demo", "--help").stdout.split())


@pytest.mark.slow
def test_a_demo_that_is_there_is_found_at_once(demo_registry):
    told = run("demo", "--folder", str(demo_registry.folder))
    assert told.returncode == 0
    assert f"MLFLOW_TRACKING_URI={demo_registry.tracking_uri} serve run registry_serve:app" in told.stdout


@pytest.mark.slow
def test_a_taken_port_is_one_line_and_exit_code_1(demo_registry):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = run("demo", "--folder", str(demo_registry.folder), "--serve", "--port", str(port))
    assert told.returncode == 1
    assert f"error: Port {port} is taken. Name a free one with --port." in told.stderr
    assert "Traceback" not in told.stdout + told.stderr


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("precious")
    told = run("demo", "--folder", str(tmp_path))
    assert told.returncode == 1
    assert told.stderr.startswith("error: ")
    assert (tmp_path / "mlflow.db").read_text() == "precious"
