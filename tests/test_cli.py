"""The command line, as a person types it."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from registry_serve import __version__
from tests.mlflow_server import free_port

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
    assert {"run", "demo"} <= set(told.stdout.split())
    assert {"--folder", "--from-hub", "--serve", "--port"} <= set(run("demo", "--help").stdout.split())


@pytest.mark.slow
def test_a_demo_that_is_there_is_found_at_once(demo_registry):
    told = run("demo", "--folder", str(demo_registry.folder))
    assert told.returncode == 0
    assert f"MLFLOW_TRACKING_URI={demo_registry.tracking_uri} registry-serve run translation_model" in told.stdout


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


def test_a_port_that_does_not_exist_is_one_line_and_exit_code_1(tmp_path):
    told = run("demo", "--folder", str(tmp_path / "demo"), "--serve", "--port", "99999")
    assert told.returncode == 1
    assert "error: Invalid value for '--port'" in told.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_serves_what_it_says_until_ctrl_c(demo_registry):
    port = free_port()
    command = [COMMAND, "demo", "--folder", demo_registry.folder, "--serve", "--port", str(port)]
    environment = {**os.environ, "NO_COLOR": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    served = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed = []
        for line in served.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        lines = [line.strip() for line in printed if line.strip().startswith("curl ")]
        answers = [json.loads(subprocess.check_output([*shlex.split(line), "-s"], timeout=60)) for line in lines]
    finally:
        served.send_signal(signal.SIGINT)
        rest = served.communicate(timeout=90)[0]
    assert served.returncode == 0, rest
    german, french, conflict, question, instruction = answers
    assert german == [{"translation_text": "Das Wetter ist heute schön."}]
    assert french == [{"translation_text": "Il fait beau aujourd'hui."}]
    assert (conflict["status"], conflict["requested_version"]) == (409, "3")
    assert question[0]["answer"] == "Germany"
    assert instruction[0].keys() == {"candidates"}


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("precious")
    told = run("demo", "--folder", str(tmp_path))
    assert told.returncode == 1
    assert told.stderr.startswith("error: ")
    assert (tmp_path / "mlflow.db").read_text() == "precious"
