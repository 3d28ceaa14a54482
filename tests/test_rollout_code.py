"""What a deployment file says of code, variables and registries is taken as it is meant, and mistakes are told."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from registry_serve.deployment_file import parse
from registry_serve.errors import ConfigurationError
from registry_serve.rollout import background
from registry_serve.rollout.code import gather
from registry_serve.rollout.sources import source_of
from registry_serve.rollout.state import private, state_folder
from registry_serve.rollout.variables import only_exports, variables
from tests.mlflow_server import free_port

HANDLER = """
import os


class Handler:
    def predict(self, model_requests):
        return [os.environ["PIN"] for each in model_requests]
"""
DEPLOYMENT = """
name: private
compute: {gpus: 0}
env_variables: [{key: PIN, value: hunter2}]
integrations: [{integration_type: git_repo, git_repo: hello}]
model: {model_handler: hello.handler.Handler}
"""
UNPACKED = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(folder))
    return folder


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "project" / "hello"
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text("")
    return folder


def file(**fields):
    return parse({"name": "a", "model": {"model_handler": "hello.handler.Handler"}, **fields})


def gathered(repo, **fields):
    integration = {"integration_type": "git_repo", "git_repo": "hello", **fields}
    return gather(file(integrations=[integration]), repo.parent, print)


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "packages", "options"),
    [
        (
            "--index-url https://a.test/simple -e .[dev] foo",
            (f"{UNPACKED}/hello/.[dev]", "foo"),
            ("--index-url", "https://a.test/simple"),
        ),
        (
            "-i https://a.test -U foo --extra-index-url https://b.test",
            ("foo",),
            ("-i", "https://a.test", "-U", "--extra-index-url", "https://b.test"),
        ),
        ("--index-url=https://a.test --no-deps foo", ("foo",), ("--index-url=https://a.test", "--no-deps")),
        ("-f ./wheels foo", (f"-f {UNPACKED}/hello/wheels", "foo"), ()),
        ("--find-links=https://a.test/w foo", ("--find-links https://a.test/w", "foo"), ()),
        (
            "-rneeds.txt --constraint=./no.txt",
            (f"-r {UNPACKED}/hello/needs.txt", f"--constraint {UNPACKED}/hello/no.txt"),
            (),
        ),
        ("-r https://a.test/r.txt -c /etc/no.txt", ("-r https://a.test/r.txt", "-c /etc/no.txt"), ()),
        ("-e. --editable=./sub ./more/", (f"{UNPACKED}/hello", f"{UNPACKED}/hello/sub", f"{UNPACKED}/hello/more"), ()),
        ("--no-binary :all: foo", ("foo",), ("--no-binary", ":all:")),
    ],
)
def test_an_option_of_pip_keeps_its_value(written, packages, options, repo):
    code = gathered(repo, pip_install=written)
    assert (code.packages, code.options) == (packages, options)


def test_a_link_to_nothing_is_left_out(repo):
    (repo / "gone").symlink_to("nowhere")
    assert gathered(repo).archive is not None


def test_what_cannot_be_copied_is_told_in_one_line(repo):
    os.mkfifo(repo / "pipe")
    with pytest.raises(ConfigurationError, match=r"pipe cannot be copied for the replicas: .*named pipe") as refused:
        gathered(repo)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("~nouser-of-this-name/x", "'~nouser-of-this-name/x' is in nobody's home folder"),
        ("/", "'/' has no name to import it under"),
        ("https://a.test/x/..", r"'https://a.test/x/\.\.' has no name to import it under"),
    ],
)
def test_a_repository_that_is_nowhere_is_told(written, said, repo):
    with pytest.raises(ConfigurationError, match=said):
        gathered(repo, git_repo=written)


# --- the environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "exported", "alone"),
    [
        ("export A=1 B='two words' C=", {"A": "1", "B": "two words", "C": ""}, True),
        ("export A=1 \\\n  B=2", {"A": "1", "B": "2"}, True),
        ('export A="two\nlines"\nexport B=2', {"A": "two\nlines", "B": "2"}, True),
        ("export A=1; # it's one", {"A": "1"}, True),
        ("export A=b#c", {"A": "b#c"}, True),
        ("export A='1;2' B=\"3 && 4\"", {"A": "1;2", "B": "3 && 4"}, True),
        ("export A=1 && pip install foo", {}, False),
        ("export A=1; pip install foo\nexport B=2", {"B": "2"}, False),
        ("export A=1 B", {}, False),
        ("export A=1 | cat", {}, False),
        ("export A=$(date)", {}, False),
        ('export A="`date`"', {}, False),
    ],
)
def test_a_line_that_does_more_than_export_is_a_command(command, exported, alone):
    assert variables(file(command=command)) == exported
    assert only_exports(command) is alone


# --- the registry ----------------------------------------------------------------------------------------------------


def test_a_mistyped_database_is_told_and_not_made(tmp_path):
    uri = f"sqlite:///{tmp_path}/mistyped.db"
    wanted = file(model={"registered_model": "iris"}, env_variables=[{"key": "MLFLOW_TRACKING_URI", "value": uri}])
    with pytest.raises(ConfigurationError, match=r"There is no registry at sqlite:///.*mistyped.db"):
        source_of(wanted)
    assert not (tmp_path / "mistyped.db").exists()


# --- who may read it -------------------------------------------------------------------------------------------------


def test_a_state_folder_that_was_open_is_closed(state):
    state.mkdir(mode=0o755)
    assert mode(state_folder("code")) == 0o700
    assert mode(state) == 0o700


def test_a_folder_that_everybody_shares_stays_open(state):
    state.mkdir()
    state.chmod(0o1777)
    state_folder()
    assert mode(state) == 0o777 | stat.S_ISVTX


def test_a_file_that_was_readable_is_closed(tmp_path):
    old = tmp_path / "log"
    old.write_text("old")
    old.chmod(0o644)
    with open(old, "wb", opener=private):
        assert mode(old) == 0o600


def readable_by_others(folder):
    """Yield the files that another user can get at."""
    for below, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if mode(Path(below, each)) & 0o001]
        yield from (path for path in (Path(below, each) for each in files) if path.is_file() and mode(path) & 0o004)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nobody_else_reads_variables_and_code_on_the_cluster_in_the_background(state, repo, tmp_path, monkeypatch):
    key = tmp_path / "home" / ".ray" / "auth_token"
    key.parent.mkdir(parents=True)
    key.write_text("0" * 64)
    key.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    state.mkdir()
    (state / "cluster.log").touch(mode=0o644)
    (repo / "handler.py").write_text(HANDLER)
    written = repo.parent / "deployment.yaml"
    written.write_text(DEPLOYMENT)
    asked = f"""
        from registry_serve.rollout import deploy
        print(deploy({str(written)!r}, port={free_port()}, on_progress=lambda doing: None).predict("a"))
    """
    try:
        said = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(asked)], capture_output=True, text=True, cwd=tmp_path
        )
        assert said.stdout.splitlines()[-1:] == ["{'outputs': ['hunter2']}"], said.stderr[-2000:]
        session = Path(json.loads((state / "cluster.json").read_text())["session"])
        open_to_all = {path for path in readable_by_others(session) if b"hunter2" in path.read_bytes()}
        assert open_to_all == set()
        assert [path for path in readable_by_others(session) if path.name == "handler.py"] == []
        assert list(session.rglob("handler.py")) != []
        assert "hunter2" in (session / "logs" / "runtime_env_agent.log").read_text()
        assert mode(key) == 0o600
        assert mode(state / "cluster.log") == 0o600
    finally:
        if (state / "cluster.json").exists():
            background.Background.model_validate_json((state / "cluster.json").read_text()).end()
