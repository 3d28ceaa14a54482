"""The commands that look at a registry and at this machine, as a person or a script runs them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from threading import Thread

import mlflow
import numpy as np
import pytest
import requests
import yaml
from ray.serve.schema import ServeDeploySchema

from registry_serve import cli
from registry_serve.application import AppArgs
from tests.mlflow_server import free_port, made_global, shared_server
from tests.toys import Constant, Shelf, Shout

COMMAND = Path(sys.executable).parent / "registry-serve"


class Ended:
    """What a command did: its exit code, what it printed, and what it said besides."""

    def __init__(self, code, printed, said):
        self.code = code
        self.printed = printed
        self.said = said

    @property
    def json(self):
        return json.loads(self.printed)

    @property
    def rows(self):
        """The lines of a table, by its first column."""
        return {line.split("  ")[0]: line for line in self.printed.splitlines()}


@pytest.fixture
def command(monkeypatch, capsys, shelf):
    """Run the command in this process."""

    def ran(*words, uri=shelf.uri):
        capsys.readouterr()  # what MLflow said so far
        at = [] if uri is None else ["--tracking-uri", uri]
        monkeypatch.setattr(sys, "argv", ["registry-serve", *map(str, words), *at])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ended(ended.value.code or 0, said.out, said.err)

    return ran


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """The database of an empty registry: making one takes MLflow seconds."""
    file = tmp_path_factory.mktemp("blank") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def small(tmp_path, blank):
    """A registry of a test's own."""
    shutil.copy(blank, tmp_path / "mlflow.db")
    return Shelf(tmp_path)


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """Models behind an MLflow server, whose artifacts have to be fetched."""
    server = shared_server()
    shelf = Shelf(tmp_path_factory.mktemp("remote"), uri=server.uri, experiment="command line")
    shelf.log("remote", Shout("one"), pip_requirements=["numpy==1.0", "leftpad"])
    shelf.log("remote", Shout("two", column="other"), column="other")
    return server


def files_of(shelf, name, version):
    """Return the folder of a version's files."""
    return Path(shelf.client.get_model_version_download_uri(name, version).removeprefix("file://"))


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_are_listed_with_their_versions_and_aliases(command):
    row = command("models").rows["toy"]
    assert row.split("  ")[1:] != []
    assert "6" in row
    assert "@challenger = 2, @champion = 1" in row


def test_models_as_json_are_complete(command, small):
    small.log("lone", Constant(1))
    small.client.set_registered_model_tag("lone", "team", "t" * 300)
    small.client.create_registered_model("unborn")
    told = command("models", "--json", uri=small.uri).json
    assert told["registry"] == small.uri
    lone, unborn = told["models"]
    assert lone == {"name": "lone", "latest_version": "1", "versions": 1, "aliases": {}, "tags": {"team": "t" * 300}}
    assert (unborn["latest_version"], unborn["versions"]) == (None, 0)


def test_an_empty_registry_is_said(command, small):
    assert "holds no registered model" in command("models", uri=small.uri).printed
    assert command("models", "--json", uri=small.uri).json["models"] == []


def test_what_others_wrote_breaks_no_table(command, small):
    small.client.create_registered_model("odd", tags={"note": "two\nlines\x1b[31m"})
    lines = command("models", uri=small.uri).printed.splitlines()
    assert len(lines) == 2
    assert "\x1b" not in lines[1]


# --- versions --------------------------------------------------------------------------------------------------------


def test_versions_are_listed_newest_first_with_why_they_are_not_compatible(command):
    told = command("versions", "toy", "--url", f"http://127.0.0.1:{free_port()}")
    assert [line.split()[0] for line in told.printed.splitlines()] == ["VERSION", "6", "5", "4", "3", "2", "1"]
    assert "no: input 'prompt' is missing; input 'other' (string, required) is new" in told.rows["3"]
    assert "other: string -> text: string" in told.rows["3"]
    assert "@champion" in told.rows["1"]
    assert "yes (the default)" in told.rows["1"]


def test_versions_are_compared_with_the_one_that_is_named(command):
    told = command("versions", "toy/3", "--json").json
    assert told["default_version"] == "3"
    assert [each["version"] for each in told["versions"] if each["compatible"]] == ["3"]
    assert told["versions"][0]["differences"][0].keys() == {"where", "column", "kind", "expected", "found", "message"}


def test_only_the_newest_versions_are_listed_if_a_person_wants_so(command):
    told = command("versions", "toy", "--limit", "2")
    assert len(told.printed.splitlines()) == 3
    assert "2 of 6 versions" in told.said
    assert command("versions", "toy", "--limit", "2", "--json").json["versions_not_shown"] == 4


def test_versions_without_a_signature_or_without_files_are_told_apart(command, small):
    small.log("mixed", Shout("one"))
    small.log("mixed", Constant(1), signature=None)
    small.log("mixed", Shout("three"))
    (files_of(small, "mixed", "3") / "MLmodel").unlink()
    told = command("versions", "mixed/1", "--json", uri=small.uri).json
    lost, unsigned, one = told["versions"]
    assert (lost["compatible"], unsigned["compatible"], one["compatible"]) == (False, False, True)
    assert "artifacts are missing" in lost["unavailable"]
    assert unsigned["differences"][0]["message"] == "the version was logged without a signature"


def test_a_default_without_a_signature_leaves_all_others_unknown(command, small):
    small.log("unsigned", Constant(1), signature=None)
    told = command("versions", "unsigned", uri=small.uri)
    assert "unknown" in told.rows["1"]
    assert "cannot be the default" in told.said


@contextmanager
def replicas(*answers):
    """Serve what ``GET /model`` says, by one replica after the other."""
    turns = cycle(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            keyed = self.headers.get("authorization") == "Bearer sesame"
            body = json.dumps(next(turns)).encode()
            self.send_response(200 if keyed and self.path == "/model" else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def replica(name, loaded, model="toy"):
    versions = [{"version": number, "state": "ready"} for number in loaded] + [{"version": "6", "state": "loading"}]
    return {"name": model, "replica": {"id": name}, "versions": versions}


def test_where_versions_are_loaded_is_asked_of_every_replica(command, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("sesame\n")
    with replicas(replica("a", ["1"]), replica("b", ["1", "2"]), replica("c", ["1"])) as url:
        asked = ["versions", "toy", "--url", url, "--api-key-file", keys]
        told = command(*asked, "--json").json
        assert told["served"] == {"url": url, "replicas": ["a", "b", "c"]}
        loaded = {each["version"]: each["loaded_in"] for each in told["versions"]}
        assert (loaded["1"], loaded["2"], loaded["6"]) == (["a", "b", "c"], ["b"], [])
        assert command(*asked).rows["2"].endswith("1 of 3")


def test_another_model_at_the_address_is_none_of_ours(command, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("sesame\n")
    with replicas(replica("a", ["1"], model="other")) as url:
        assert command("versions", "toy", "--url", url, "--api-key-file", keys, "--json").json["served"] is None


def test_a_server_that_says_nothing_holds_nobody_up(command):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        told = command("versions", "toy", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--json")
    assert told.json["served"] is None
    assert time.monotonic() - began < 4


# --- diff ------------------------------------------------------------------------------------------------------------


def test_a_diff_tells_an_incompatible_version_from_an_error_by_its_exit_code(command):
    assert command("diff", "toy", "1", "2").code == 0
    assert command("diff", "toy", "1", "3").code == 2
    assert command("diff", "toy", "1", "99").code == 1


def test_a_diff_as_json_has_the_differences_of_a_409(command):
    told = command("diff", "toy", "@champion", "3", "--json")
    assert told.code == 2
    assert told.json["expected"] == {"model": "toy", "version": "1", "aliases": ["champion"]}
    assert told.json["compatible"] is False
    removed = told.json["differences"][0]
    assert (removed["where"], removed["column"], removed["kind"]) == ("inputs", "prompt", "removed")
    assert removed["expected"] == "string, required"


def test_a_diff_takes_references_and_versions_of_other_models(command, shelf):
    shelf.log("numbers", Constant([1]), signature=mlflow.models.infer_signature(np.zeros((2, 3)), np.zeros(2)))
    assert command("diff", "toy", "challenger", "latest").code == 0
    told = command("diff", "toy", "toy@champion", "numbers/1")
    assert told.code == 2
    assert "inputs are unnamed tensors, not named columns" in told.printed


def test_backward_compatibility_goes_one_way(command, small):
    narrow = mlflow.models.infer_signature(np.zeros((2, 3), "float32"), np.zeros(2))
    wide = mlflow.models.infer_signature(np.zeros((2, 3), "float64"), np.zeros(2))
    small.log("growing", Constant([1]), signature=narrow)
    small.log("growing", Constant([1]), signature=wide)
    codes = [
        command("diff", "growing", one, other, "--compatibility", "backward", uri=small.uri).code
        for one, other in (("1", "2"), ("2", "1"))
    ]
    assert codes == [0, 2]


# --- check -----------------------------------------------------------------------------------------------------------


def test_a_census_looks_at_what_is_served_by_default(command, remote):
    told = command("check", "remote", "--json", uri=remote.uri)
    assert told.code == 0
    (found,) = told.json["versions"]
    assert (found["version"], found["default"], found["servable"]) == ("2", True, True)


def test_a_census_of_all_versions_compares_their_packages_without_their_weights(command, remote):
    told = command("check", "--all", "remote", uri=remote.uri)
    assert "wants numpy==1.0, leftpad" in told.printed
    one = command("check", "--all", "remote", "--json", uri=remote.uri).json["versions"][1]
    wanted = {each["requirement"]: each["installed"] for each in one["environment"]["differences"]}
    assert wanted == {"numpy==1.0": np.__version__, "leftpad": None}
    assert one["signature"] == "columns"
    assert one["size_bytes"] > 0


def test_a_census_fails_if_a_default_version_cannot_be_served(command, small):
    small.log("good", Shout("one"))
    small.log("unsigned", Constant(1), signature=None)
    small.client.create_registered_model("unborn")
    told = command("check", uri=small.uri)
    assert told.code == 1
    assert "could not be: unsigned/1." in told.said
    assert "was logged without a signature" in told.rows["unsigned"]
    assert "has no version that is ready" in told.rows["unborn"]
    as_json = command("check", "--json", uri=small.uri)
    assert (as_json.code, as_json.json["ok"], as_json.json["servable"]) == (1, False, 1)


def test_old_versions_that_cannot_be_served_are_no_failure(command, small):
    small.log("mended", Constant(1), signature=None)
    small.log("mended", Shout("two"))
    told = command("check", "--all", "--json", uri=small.uri)
    assert told.code == 0
    assert [each["servable"] for each in told.json["versions"]] == [True, False]
    assert command("check", "mended/1", uri=small.uri).code == 1


def test_a_model_without_python_function_is_not_servable(command, small):
    file = files_of(small, "native", small.log("native", Shout("one"))) / "MLmodel"
    card = yaml.safe_load(file.read_text())
    card["flavors"] = {"sklearn": {}}
    file.write_text(yaml.safe_dump(card))
    told = command("check", "--json", uri=small.uri)
    assert told.code == 1
    assert "python_function" in told.json["versions"][0]["reason"]


# --- config ----------------------------------------------------------------------------------------------------------


def test_a_config_is_one_that_ray_takes(command, shelf, tmp_path):
    shelf.log("a model: of 'ours'".replace(":", ""), Shout("one"))
    file = tmp_path / "serve.yaml"
    told = command("config", "toy@champion", "a model of 'ours'", "-o", file)
    assert told.code == 0
    assert f"serve deploy {file}" in told.printed
    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    toy, other = schema.applications
    assert (toy.route_prefix, toy.deployments[0].name, toy.args["version"]) == ("/toy", "toy", "@champion")
    assert (other.route_prefix, other.deployments[0].name) == ("/a_model_of__ours_", "a_model_of__ours_")
    assert [AppArgs(**each.args).model for each in schema.applications] == ["toy", "a model of 'ours'"]
    assert schema.http_options.host == "127.0.0.1"


def test_a_config_of_one_model_is_printed_and_answers_at_the_root(command, shelf):
    written = yaml.safe_load(command("config", "toy").printed)
    (application,) = written["applications"]
    assert application["route_prefix"] == "/"
    assert application["args"] == {"model": "toy", "version": "1", "tracking_uri": shelf.uri}
    assert command("config", "toy", "--json").json == {"file": None, "config": written}


def test_a_config_replaces_no_file_unless_it_is_told_to(command, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("precious")
    told = command("config", "toy", "-o", file)
    assert (told.code, file.read_text()) == (1, "precious")
    assert "--force" in told.said
    assert command("config", "toy", "-o", file, "--force").code == 0
    assert yaml.safe_load(file.read_text())["applications"]


def test_no_config_is_written_for_what_cannot_be_served(command, small, tmp_path):
    small.log("unsigned", Constant(1), signature=None)
    told = command("config", "unsigned", "-o", tmp_path / "serve.yaml", uri=small.uri)
    assert told.code == 1
    assert "was logged without a signature" in told.said
    assert not (tmp_path / "serve.yaml").exists()


def test_a_password_gets_into_no_config(command, remote, tmp_path):
    uri = remote.uri.replace("http://", "http://me:secret@")
    told = command("config", "remote", uri=uri)
    assert told.code == 0
    assert "secret" not in told.printed
    assert "tracking_uri" not in yaml.safe_load(told.printed)["applications"][0]["args"]


def test_two_models_of_one_name_are_refused(command):
    assert "Name each of them once" in command("config", "toy", "toy/2").said


@pytest.mark.cluster
@pytest.mark.slow
def test_a_config_is_deployed_by_ray(cluster, command, shelf, tmp_path, monkeypatch):
    from ray import serve

    shelf.log("sibling", Shout("sibling"))
    file = tmp_path / "serve.yaml"
    assert command("config", "toy/2", "sibling", "-o", file).code == 0
    file.write_text(file.read_text().replace("port: 8000", f"port: {cluster.port}"))
    deploy = [COMMAND.parent / "serve", "deploy", "-a", cluster.dashboard, file]
    deployed = subprocess.run(deploy, capture_output=True, text=True, check=False)
    try:
        assert deployed.returncode == 0, deployed.stderr
        deadline = time.monotonic() + 90
        for prefix, answer in (("/toy", "two:a"), ("/sibling", "sibling:a")):
            while (told := requests.post(f"{cluster.address}{prefix}/serve", json={"prompt": "a"})).status_code != 200:
                assert time.monotonic() < deadline, serve.status()
                time.sleep(0.5)
            assert told.json() == [{"text": answer}]
    finally:
        serve.delete("toy")
        serve.delete("sibling")


# --- doctor ----------------------------------------------------------------------------------------------------------


def finding(told, subject):
    return next(each for each in told.json["findings"] if each["subject"] == subject)


def test_a_healthy_machine_has_no_problem(command, remote):
    told = command("doctor", "--port", free_port(), "--json", uri=remote.uri)
    assert (told.code, told.json["ok"]) == (0, True)
    assert finding(told, "registry")["state"] == "ok"
    assert finding(told, "ray")["found"].startswith("2.")
    assert {"HAProxy", "model files", "Ray's disk", "GPUs"} <= {each["subject"] for each in told.json["findings"]}


def test_the_holder_of_a_port_is_named(command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = finding(command("doctor", "--port", port, "--json"), f"port {port}")
    assert found["state"] == "warning"
    assert f"process {os.getpid()}" in found["found"]
    assert "--port" in found["advice"]


def test_a_registry_that_does_not_answer_is_a_problem(command):
    told = command("doctor", "--json", uri=f"http://me:secret@127.0.0.1:{free_port()}")
    assert (told.code, told.json["ok"]) == (1, False)
    assert finding(told, "registry")["state"] == "problem"
    assert "secret" not in told.printed


def test_a_budget_that_is_none_is_a_problem(command, monkeypatch):
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS_MAX_BYTES", "plenty")
    told = command("doctor", "--json")
    assert told.code == 1
    assert "20GiB" in finding(told, "model files")["advice"]


def test_a_cluster_that_would_be_joined_is_a_warning(command, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    found = finding(command("doctor", "--json"), "Ray clusters")
    assert found["state"] == "warning"
    assert "unset RAY_ADDRESS" in found["advice"]


# --- what all commands have in common --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["models"], ["versions", "toy"], ["diff", "toy", "1", "3"], ["check", "toy"], ["config", "toy"], ["doctor"]],
    ids=lambda words: words[0],
)
def test_json_is_all_that_is_printed(command, words):
    told = command(*words, "--json")
    assert isinstance(told.json, dict)
    assert told.said == ""


def test_what_run_serves_is_one_object_for_who_asked_for_json(command, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start = "registry_serve.cli.run.serve_until_stopped"
    monkeypatch.setattr(start, lambda launch, announce, **options: announce("/logs"))  # a cluster takes a minute
    port = free_port()
    told = command("run", "toy", "--port", port, "--json")
    assert told.json["address"] == f"http://127.0.0.1:{port}"
    assert (told.json["model"], told.json["version"], told.json["logs"]) == ("toy", "1", "/logs")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["versions", "nothing"], "model_not_found"),
        (["diff", "toy", "1", "99"], "version_not_found"),
        (["config", "toy/a b"], "configuration_error"),
        (["models", "--colour", "red"], "usage_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_is_json_for_who_asked_for_json(command, words, code):
    told = command(*words, "--json")
    assert (told.code, told.printed) == (1, "")
    error = json.loads(told.said)
    assert error.keys() == {"error", "code"}
    assert error["code"] == code


def test_an_error_is_one_line_that_says_what_to_do(command):
    told = command("versions", "toy", "--limit", "many")
    assert told.said.startswith("error: Invalid value for '--limit'")
    assert told.said.endswith("See registry-serve versions --help.\n")


def test_a_registry_that_is_not_there_is_not_made(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = command("models", uri="sqlite:///nowhere.db")
    assert told.code == 1
    assert "There is no registry at sqlite:///" in told.said
    assert list(tmp_path.iterdir()) == []


def test_an_error_shows_where_it_comes_from_only_if_asked(command, monkeypatch):
    def broken(*given):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("registry_serve.cli.registry.looked_up", broken)
    told = command("models")
    assert told.code == 1
    assert told.said.count("\n") == 1
    assert "ZeroDivisionError" in told.said
    assert "registry-serve --debug models" in told.said
    assert "secret" not in told.said
    with pytest.raises(ZeroDivisionError):
        command("--debug", "models")


def run(*words, uri, **options):
    environment = {**os.environ, "NO_COLOR": "1", "MLFLOW_TRACKING_URI": uri}
    return subprocess.run(
        [COMMAND, *words], env=environment, capture_output=True, text=True, check=False, timeout=120, **options
    )


def test_debug_prints_a_stack_trace(shelf):
    told = run("--debug", "versions", "nothing", uri=shelf.uri)
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    assert "ModelNotFound" in told.stderr


def test_a_reader_that_has_seen_enough_is_no_error(shelf):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": shelf.uri}
    for words in ("versions toy --json", "versions toy"):
        line = f"{COMMAND} {words} | head -c 1"
        told = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
        assert (len(told.stdout), told.stderr) == (1, "")


def test_the_environments_registry_is_asked_if_none_is_named(command, shelf):
    with made_global(shelf.uri):
        assert "toy" in command("models", uri=None).rows
