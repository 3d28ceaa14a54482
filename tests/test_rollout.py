"""Deployment files taken online: what is gathered and remembered, and real deployments on real clusters."""

import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
import requests
import yaml

from registry_serve import rollout
from registry_serve.deployment_file import parse
from registry_serve.errors import ConfigurationError, DeploymentFileInvalid, DeploymentNotFound, ResourcesMissing
from registry_serve.rollout import records
from registry_serve.rollout.applications import build
from registry_serve.rollout.background import Background, living
from registry_serve.rollout.code import Code, gather
from registry_serve.rollout.records import Order, Record
from registry_serve.rollout.state import changing, state_folder
from registry_serve.rollout.variables import code_paths, executable, only_exports, variables
from tests.mlflow_server import free_port
from tests.toys import Shout

HANDLER = """
import os
from typing import Any, Dict, List

from registry_serve.handlers import ModelHandlerInterface
from words import GREETING


class HelloWorldModelHandler(ModelHandlerInterface):
    def predict(self, model_requests: List[Dict[str, Any]]):
        return [f"{GREETING} {each['input']}{self.mark(each['input'])}" for each in model_requests]

    def mark(self, input):
        return {"who": f" {os.getpid()}", "variable": f" {os.environ.get('MARK')} {os.environ.get('EXPORTED')}"}.get(
            input, ""
        )


class Broken(ModelHandlerInterface):
    def __init__(self, **kwargs):
        raise ValueError("no weights")

    def predict(self, model_requests):
        return model_requests


class NoHandler:
    pass
"""
DOWNLOADER = """
from pathlib import Path


def download(print_string, folder):
    print(print_string)
    with Path(folder, "downloads.txt").open("a") as file:
        file.write(print_string + "\\n")
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


@pytest.fixture
def project(tmp_path):
    """The folder of a deployment file, with a repository beside it that holds a handler and a downloader."""
    repo = tmp_path / "project" / "hello_world"
    repo.mkdir(parents=True)
    (repo / "handler.py").write_text(HANDLER)
    (repo / "downloader.py").write_text(DOWNLOADER)
    (repo / "words.py").write_text('GREETING = "hello"\n')
    (repo / "__pycache__").mkdir()
    (repo / "__pycache__" / "words.pyc").write_bytes(b"old")
    return repo.parent


def document(project, name, handler="HelloWorldModelHandler", **changes):
    return {
        "name": name,
        "replicas": 1,
        "compute": {"gpus": 0, "gpu_type": "a100_40gb"},
        "integrations": [{"integration_type": "git_repo", "git_repo": "hello_world"}],
        "model": {
            "downloader": "hello_world.downloader.download",
            "download_parameters": {"print_string": f"downloaded {name}", "folder": str(project)},
            "model_handler": f"hello_world.handler.{handler}",
            "model_parameters": {"print_string": "hi"},
        },
        **changes,
    }


def written(project, name, **changes):
    file = project / "deployment.yaml"
    file.write_text(yaml.safe_dump(document(project, name, **changes)))
    return file


def gathered(project, *integrations):
    given = [{"integration_type": "git_repo", **each} for each in integrations]
    return gather(parse(document(project, "a", integrations=given)), project, print)


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=me", "-c", "user.email=me@x", "-C", folder, *words], check=True, capture_output=True
    )


def repository(folder):
    git(folder, "init", "-b", "main")
    git(folder, "add", "handler.py", "words.py")
    git(folder, "commit", "-m", "one")
    return subprocess.check_output(["git", "-C", folder, "rev-parse", "HEAD"], text=True).strip()


def names_in(code):
    with zipfile.ZipFile(code.archive) as archive:
        return {name for name in archive.namelist() if "/" in name}


def content(code, name):
    with zipfile.ZipFile(code.archive) as archive:
        return archive.read(name).decode()


# --- code ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_copied_as_it_is_without_what_no_replica_needs(project):
    (project / "hello_world" / ".gitignore").write_text("# big\n*.bin\n/data/\nsecret.txt\n")
    for name in ("weights.bin", "secret.txt", "kept.txt"):
        (project / "hello_world" / name).write_text("x")
    code = gathered(project, {"git_repo": "hello_world"})
    assert names_in(code) == {
        f"hello_world/{name}" for name in (".gitignore", "downloader.py", "handler.py", "kept.txt", "words.py")
    }
    assert code.paths == (".", "hello_world")


def test_the_same_code_is_the_same_archive_and_other_code_is_another(project):
    first, again = (gathered(project, {"git_repo": "hello_world"}) for _ in range(2))
    assert first == again
    (project / "hello_world" / "words.py").write_text('GREETING = "good day"\n')
    assert gathered(project, {"git_repo": "hello_world"}).archive != first.archive


def test_a_path_is_the_name_it_is_imported_under(project):
    code = gathered(project, {"git_repo": "./hello_world", "path": "/code/other"})
    assert "other/handler.py" in names_in(code)
    with pytest.raises(ConfigurationError, match="Two git_repo integrations have the same name"):
        gathered(project, {"git_repo": "hello_world"}, {"git_repo": str(project / "hello_world")})


def test_a_branch_or_a_commit_of_a_repository_is_cloned(project):
    repo = project / "hello_world"
    commit = repository(repo)
    git(repo, "checkout", "-b", "new")
    (repo / "words.py").write_text('GREETING = "good day"\n')
    git(repo, "commit", "-am", "two")
    (repo / "words.py").write_text("not committed")
    assert "not committed" in content(gathered(project, {"git_repo": "hello_world"}), "hello_world/words.py")
    for wanted, said in (({"git_branch": "main"}, "hello"), ({"git_branch": "new"}, "good day")):
        code = gathered(project, {"git_repo": "hello_world", **wanted})
        assert said in content(code, "hello_world/words.py")
        assert not any(".git/" in name for name in names_in(code))
    code = gathered(project, {"git_repo": "hello_world", "git_commit": commit})
    assert '"hello"' in content(code, "hello_world/words.py")
    url = repo.as_uri()
    assert "hello_world/handler.py" in names_in(gathered(project, {"git_repo": url, "git_branch": "new"}))


def test_what_git_cannot_get_is_one_line_without_credentials(project):
    repository(project / "hello_world")
    for asked, said in (
        ({"git_repo": "hello_world", "git_branch": "nothing"}, "git cannot get .*nothing"),
        ({"git_repo": f"http://me:secret@127.0.0.1:{free_port()}/a/b"}, "git cannot get http://127.0.0.1"),
        ({"git_repo": "nothing"}, "no folder below .*, no org/repo and no URL"),
        ({"git_repo": "--upload-pack=touch"}, "no org/repo and no URL"),
    ):
        with pytest.raises(ConfigurationError, match=said) as refused:
            gathered(project, asked)
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)


def test_packages_are_handed_to_pip(project):
    integrations = [
        {
            "integration_type": "git_repo",
            "git_repo": "hello_world",
            "pip_install": "-e . -r needs.txt --no-deps einops",
        },
        {"integration_type": "pip_packages", "packages": ["six>=1"]},
    ]
    code = gather(parse(document(project, "a", integrations=integrations)), project, print)
    folder = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/hello_world"
    assert set(code.packages) == {"six>=1", folder, f"-r {folder}/needs.txt", "einops"}
    assert code.options == ("--no-deps",)
    record = record_of(project, integrations=integrations).model_copy(update={"code": code})
    made = build(record, "file:///x.zip").deployment.ray_actor_options["runtime_env"]
    assert made["working_dir"] == "file:///x.zip"
    assert made["pip"]["packages"] == list(code.packages)


# --- the environment -------------------------------------------------------------------------------------------------


def test_export_lines_of_a_command_are_honoured(project):
    command = """
        export PYTHONPATH=$PYTHONPATH:/code/hello_world:/opt/x
        export MODE='two words'  # really
        pip install something
    """
    file = parse(document(project, "a", command=command, env_variables=[{"key": "MODE", "value": "one"}]))
    assert variables(file) == {"MODE": "two words", "PYTHONPATH": "${PYTHONPATH}:/opt/x"}
    assert code_paths(file) == ["hello_world"]
    assert not only_exports(command)
    assert only_exports("# nothing\nexport A=1\n")
    assert only_exports(None)


def test_a_command_runs_before_python_does(tmp_path):
    command = f"export GREETING='good day'\necho ran > {tmp_path}/ran\n"
    shell = f"exec {executable(command)} -c 'import os; print(os.environ[\"GREETING\"])'"
    assert subprocess.check_output(["bash", "-c", shell], text=True) == "good day\n"
    assert (tmp_path / "ran").read_text() == "ran\n"


# --- what is remembered ----------------------------------------------------------------------------------------------


def record_of(project, name="remembered", **changes):
    now = datetime.now(timezone.utc)
    file = parse(document(project, name, **changes)).model_dump(mode="json", exclude_none=True)
    return Record(name=name, file=file, folder=str(project), order=Order(), code=Code(), created=now, deployed=now)


def test_a_record_comes_back_and_is_its_owners_only(project, state):
    record = record_of(project, env_variables=[{"key": "HF_TOKEN", "value": "geheim"}])
    records.keep(record)
    assert records.get("remembered") == record
    assert records.get("remembered").parsed.env_variables[0].value == "geheim"
    [file] = (state / "deployments").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    records.forget("remembered")
    assert records.everything() == []


def test_what_is_not_there_is_named_with_what_is(project):
    records.keep(record_of(project))
    for ask in (rollout.status, rollout.stop, rollout.delete, rollout.update, rollout.running):
        with pytest.raises(DeploymentNotFound, match=r"no deployment 'nothing'\. There are: remembered"):
            ask("nothing")
    with pytest.raises(DeploymentNotFound):
        records.get("../deployments/remembered")


def test_a_deployment_whose_cluster_has_ended_is_stopped_and_says_why(project):
    records.keep(record_of(project, env_variables=[{"key": "HF_TOKEN", "value": "geheim"}]))
    [told] = rollout.deployments()
    assert (told.state, told.replicas_ready, told.replicas) == ("stopped", 0, 1)
    assert "has ended" in told.message
    assert "geheim" not in repr(told)
    rollout.delete("remembered")
    assert rollout.deployments() == []


def test_what_a_dead_cluster_left_is_removed_and_said(state, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = {"address": "192.0.2.1:1", "session": "/nowhere", "leader": ended.pid, "born": 1.0, "folder": str(folder)}
    more = {"started": datetime.now(timezone.utc), "socket": "x", "key": "00", "host": "127.0.0.1", "port": 1}
    (state_folder() / "cluster.json").write_text(Background(**left, **more).model_dump_json())
    said = []
    assert living(said.append) is None
    assert "has ended unexpectedly" in said[0]
    assert not folder.exists()
    assert not (state / "cluster.json").exists()


def test_two_that_change_at_the_same_time_go_one_after_the_other():
    code = "from registry_serve.rollout.state import changing\nwith changing(print): print('mine')"
    with changing(print):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "Waiting for another command to finish\n"
    assert other.communicate(timeout=30)[0] == "mine\n"


# --- what is refused before anything starts --------------------------------------------------------------------------


def test_a_bad_file_starts_nothing(project, state):
    with pytest.raises(DeploymentFileInvalid, match=r"deployment\.yaml, line \d+: replicas"):
        rollout.deploy(written(project, "a", replicas="two"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        rollout.deploy(project / "nothing.yaml")
    with pytest.raises(ConfigurationError, match="API key file"):
        rollout.deploy(written(project, "a"), api_key_file=project / "nothing")
    assert not (state / "cluster.json").exists()


# --- on the cluster that this process is connected to ----------------------------------------------------------------


@pytest.fixture
def bring_up(cluster, project):
    made = []

    def deploy(name, **options):
        changes = options.pop("changes", {})
        made.append(name)
        return rollout.deploy(written(project, name, **changes), **options)

    yield deploy
    for name in made:
        if records.find(name) is not None:
            rollout.delete(name)


@pytest.mark.cluster
def test_a_file_with_its_code_and_downloader_goes_online(bring_up, cluster, project):
    said = []
    made = bring_up("hello-world-model", on_progress=said.append)
    assert made.url == f"{cluster.address}/hello-world-model"
    assert made.ping() == 200
    assert made.predict(["prompt 1", "prompt 2"]) == {"outputs": ["hello prompt 1", "hello prompt 2"]}
    assert (project / "downloads.txt").read_text() == "downloaded hello-world-model\n"
    form = requests.post(
        f"{made.url}/predict",
        data='{"inputs": ["prompt 1"]}',
        headers={"authorization": "any", "content-type": "application/x-www-form-urlencoded"},
        timeout=30,
    )
    assert form.json() == {"outputs": ["hello prompt 1"]}
    told = made.status()
    assert (told.state, told.replicas_ready, told.replicas, told.message) == ("running", 1, 1, "")
    assert told.serves == "hello_world.handler.HelloWorldModelHandler"
    assert "Loading hello-world-model" in said
    assert any("Version 1 of hello-world-model is ready" in line for line in made.logs())
    assert len(list(made.logs(tail=1))) == 1


@pytest.mark.cluster
def test_keys_variables_and_exports_reach_the_replica(bring_up, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ключ-open\n")
    changes = {"env_variables": [{"key": "MARK", "value": "m"}], "command": "export EXPORTED=e\ntouch /nowhere/x"}
    said = []
    made = bring_up("keyed", api_key_file=keys, changes=changes, on_progress=said.append)
    assert made.predict("variable")["outputs"] == ["hello variable m e"]
    assert requests.post(f"{made.url}/predict", json={"inputs": ["x"]}, timeout=30).status_code == 401
    assert any("command is not run" in each for each in said)
    raw = requests.post(
        f"{made.url}/predict", json={"inputs": ["x"]}, headers={"authorization": "ключ-open".encode()}, timeout=30
    )
    assert raw.json() == {"outputs": ["hello x"]}


@pytest.mark.cluster
def test_an_allowed_command_runs_in_the_replica(bring_up, tmp_path):
    changes = {"command": f"EXPORTED=shell; export EXPORTED\necho ran > {tmp_path}/ran"}
    made = bring_up("commanded", allow_command=True, changes=changes)
    assert made.predict("variable")["outputs"] == ["hello variable None shell"]
    assert (tmp_path / "ran").read_text() == "ran\n"


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("Broken", "cannot be used: building it raised ValueError: no weights"),
        ("NoHandler", "'hello_world.handler.NoHandler' cannot be used"),
        ("Missing", "'hello_world.handler.Missing' cannot be used"),
    ],
)
def test_what_cannot_start_is_one_line_and_leaves_nothing(bring_up, handler, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        bring_up("failing", changes={"handler": handler})
    assert "\n" not in str(refused.value)
    assert rollout.deployments() == []


@pytest.mark.cluster
def test_what_was_stopped_and_cannot_start_again_is_still_known(bring_up):
    made = bring_up("paused")
    made.stop()
    with pytest.raises(ConfigurationError, match="no weights"):
        bring_up("paused", changes={"handler": "Broken"})
    assert (made.status().state, made.status().serves) == ("stopped", "hello_world.handler.HelloWorldModelHandler")


@pytest.mark.cluster
def test_gpus_that_are_not_there_are_told_at_once(bring_up):
    began = time.monotonic()
    with pytest.raises(ResourcesMissing, match="no GPU"):
        bring_up("greedy", gpus=1)
    assert time.monotonic() - began < 10
    assert rollout.deployments() == []


@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_an_update_that_fails_leaves_the_old_one_serving(bring_up, project):
    made = bring_up("steady")
    [old] = made.predict("who")["outputs"]
    with pytest.raises(ConfigurationError, match=r"no weights.* What was deployed before goes on\."):
        bring_up("steady", changes={"handler": "Broken"})
    deadline = time.monotonic() + 60
    answers = {old}
    while made.status().state != "running" or answers == {old}:
        assert time.monotonic() < deadline, made.status()
        answers |= set(made.predict("who")["outputs"])
    assert made.status().serves.endswith("HelloWorldModelHandler")


@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_replicas_are_changed_and_a_stopped_one_comes_back(bring_up):
    made = bring_up("grown")
    told = rollout.update("grown", replicas=2)
    assert (told.state, told.replicas_ready, told.replicas) == ("running", 2, 2)
    answerers = {made.predict("who")["outputs"][0] for _ in range(40)}
    assert len(answerers) == 2
    assert {line[0] for line in made.logs()} == {"["}
    made.stop()
    assert (made.ping(), made.status().state, made.status().message) == (404, "stopped", "")
    assert rollout.update("grown").state == "running"
    assert made.predict("a") == {"outputs": ["hello a"]}
    made.delete()
    assert made.ping() == 404
    with pytest.raises(DeploymentNotFound):
        made.status()


@pytest.mark.cluster
def test_an_application_of_somebody_else_is_not_replaced(cluster, bring_up):
    from ray import serve

    @serve.deployment
    class Theirs:
        def __call__(self, request):
            return "theirs"

    serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
    try:
        with pytest.raises(ConfigurationError, match="another application 'theirs' already"):
            bring_up("theirs")
        assert requests.get(f"{cluster.address}/theirs", timeout=30).text == "theirs"
    finally:
        serve.delete("theirs")


@pytest.mark.cluster
def test_a_registered_model_keeps_its_version_until_it_is_deployed_again(cluster, shelf):
    for text in ("first", "second"):
        shelf.log("rolled", Shout(text))
    shelf.alias("rolled", "champion", "1")
    file = {
        "name": "rolled-out",
        "model": {"registered_model": "rolled"},
        "env_variables": [{"key": "MLFLOW_TRACKING_URI", "value": shelf.uri}],
    }

    def answer():
        return requests.post(f"{made.url}/serve", json={"prompt": "a"}, timeout=30).json()

    made = rollout.deploy(file)
    try:
        assert made.status().serves == "models:/rolled/1"
        assert (made.ping(), answer()) == (200, [{"text": "first:a"}])
        shelf.alias("rolled", "champion", "2")
        assert rollout.update("rolled-out").serves == "models:/rolled/1"
        rollout.deploy(file)
        assert (made.status().serves, answer()) == ("models:/rolled/2", [{"text": "second:a"}])
    finally:
        made.delete()


# --- on the cluster in the background --------------------------------------------------------------------------------


def in_a_process(code, **environment):
    """Run Python in a process that knows nothing of the cluster of these tests; return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def session(pid):
    try:
        return os.getsid(pid)
    except OSError:
        return None


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_cluster_in_the_background_outlives_its_callers_and_ends_with_its_last_deployment(project, state):
    port = free_port()
    file, other = written(project, "first"), project / "other.yaml"
    other.write_text(yaml.safe_dump(document(project, "second", handler="Broken")))
    said = in_a_process(
        f"""
        from registry_serve.rollout import deploy
        made = deploy({str(file)!r}, port={port}, on_progress=print)
        print(made.predict(["prompt 1", "prompt 2"]))
        """
    )
    assert said[:2] == ["Starting Ray", "Starting Ray Serve"]
    assert said[-1] == "{'outputs': ['hello prompt 1', 'hello prompt 2']}"
    held = json.loads((state / "cluster.json").read_text())
    assert stat.S_IMODE((state / "cluster.json").stat().st_mode) == 0o600
    try:
        said = in_a_process(
            f"""
            from registry_serve.errors import ConfigurationError
            from registry_serve.rollout import deploy, running, status, update
            print(running("first").predict("a"), status("first").state)
            for options in ({{"host": "0.0.0.0"}}, {{}}):
                try:
                    deploy({str(other)!r}, port={port}, **options)
                except ConfigurationError as error:
                    print(error)
            print(update("first", replicas=2).replicas_ready)
            print(*running("first").logs(), sep="\\n")
            """
        )
        assert said[0] == "{'outputs': ['hello a']} running"
        assert "listen on 127.0.0.1 already" in said[1]
        assert "no weights" in said[2]
        assert said[3] == "2"
        assert any("downloaded first" in line for line in said[4:])
        assert psutil.pid_exists(held["leader"])
        assert in_a_process("from registry_serve import rollout; rollout.delete('first', print)")[-1].startswith(
            "Stopp"
        )
        left = [pid for pid in psutil.pids() if session(pid) == held["leader"]]
        assert left == []
        assert not (state / "cluster.json").exists()
        assert not Path(held["folder"]).exists()
    finally:
        if (state / "cluster.json").exists():
            Background.model_validate_json((state / "cluster.json").read_text()).end()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_on_which_nothing_could_be_deployed_ends(project, state):
    records.keep(record_of(project, "stopped").model_copy(update={"stopped": True}))
    said = in_a_process(
        f"""
        from registry_serve.rollout import deploy, update
        from registry_serve.errors import ConfigurationError
        try:
            deploy({str(written(project, "greedy"))!r}, gpus=1000, port={free_port()}, on_progress=print)
        except ConfigurationError as error:
            print(error)
        """
    )
    assert said[0] == "Starting Ray"
    assert "you ask for 1" in said[-1]
    assert not (state / "cluster.json").exists()
    assert [each.name for each in rollout.deployments()] == ["stopped"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_taken_port_is_told_before_ray_starts(project):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [said] = in_a_process(
            f"""
            from registry_serve.rollout import deploy
            from registry_serve.errors import ConfigurationError
            try:
                deploy({str(written(project, "late"))!r}, port={port}, on_progress=lambda doing: None)
            except ConfigurationError as error:
                print(error)
            """
        )
    assert f"Port {port} is taken" in said
