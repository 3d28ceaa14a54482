"""Model handlers on a real cluster: one line to serve one, its downloads, its clients."""

import json
import os
import signal
import time

import pytest
import requests
from ray import serve

from registry_serve import ModelHandlerInterface, ResourcesMissing, deployment_from_handler

pytestmark = pytest.mark.cluster

HANDLER = """
import os, pathlib

class Pieces:
    def __init__(self, folder):
        self.text = (pathlib.Path(folder) / "model.txt").read_text()

    def predict(self, model_requests):
        return [f"{self.text}: {each['input']}, process {os.getpid()}" for each in model_requests]

    def predict_stream(self, input, parameters):
        for word in input.split():
            yield word
"""

DOWNLOADER = """
import os, pathlib, time

def download(folder, seconds):
    folder = pathlib.Path(folder)
    with open(folder / "runs.txt", "a") as runs:
        runs.write(f"{os.getpid()}\\n")
    (folder / "model.txt").write_text("half of ")
    time.sleep(seconds)
    (folder / "model.txt").write_text("whole")
"""


@pytest.fixture
def repository(tmp_path):
    """Code of a handler and its downloader, in modules that no other test has."""
    name = f"repository_{abs(hash(str(tmp_path)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "handler.py").write_text(HANDLER)
    (tmp_path / name / "fetching.py").write_text(DOWNLOADER)
    return tmp_path, name


def deployment(repository, seconds=2.0, **options):
    folder, name = repository
    return deployment_from_handler(
        f"{name}.handler.Pieces",
        model_parameters={"folder": str(folder)},
        downloader=f"{name}.fetching.download",
        download_parameters={"folder": str(folder), "seconds": seconds},
        code_paths=[folder],
        **options,
    )


def run(made, name, **options):
    made = made.options(ray_actor_options={"num_cpus": 0.5}, **options)
    return serve.run(made.bind(), name=name, route_prefix=f"/{name}")


def runs(folder):
    return [int(line) for line in (folder / "runs.txt").read_text().split()]


@pytest.fixture
def applications():
    """Names of applications that are deleted when the test has ended."""
    names = []
    yield names
    for name in names:
        serve.delete(name)


class Shout(ModelHandlerInterface):
    def predict(self, model_requests):
        return [each["input"].upper() for each in model_requests]


def test_a_handler_class_is_served_with_one_line_and_answers_mosaicmls_clients(cluster, applications, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("secret\n")
    applications.append("shout")
    handle = run(deployment_from_handler(Shout, api_key_file=keys), "shout")
    url = f"{cluster.address}/shout"
    data = json.dumps({"inputs": ["prompt 1", "prompt 2"]})
    answer = requests.post(url + "/predict", headers={"authorization": "secret"}, data=data, timeout=30)
    assert answer.json() == {"outputs": ["PROMPT 1", "PROMPT 2"]}
    assert requests.post(url + "/predict", data=data, timeout=30).status_code == 401
    assert requests.get(url + "/ping", timeout=30).status_code == 200
    assert handle.predict.remote(["a", "b"]).result() == ["A", "B"]
    described = requests.get(url + "/model", headers={"authorization": "secret"}, timeout=30).json()
    assert (described["name"], described["replica"]["ready"]) == ("Shout", True)
    assert described["replica"]["id"]


def test_three_replicas_that_start_together_run_the_downloader_once(cluster, applications, repository):
    folder, _ = repository
    applications.append("three")
    run(deployment(repository), "three", num_replicas=3)
    outputs = set()
    deadline = time.monotonic() + 60
    while len(outputs) < 3 and time.monotonic() < deadline:
        answer = requests.post(f"{cluster.address}/three/predict", json={"inputs": ["a"]}, timeout=30)
        outputs.update(answer.json()["outputs"])
    assert len(outputs) == 3  # from three processes
    assert all(each.startswith("whole: a") for each in outputs)
    assert len(runs(folder)) == 1
    lines = requests.post(f"{cluster.address}/three/predict_stream", json={"inputs": "one two"}, timeout=30).text
    assert lines == '"one"\n"two"\n'


@pytest.mark.slow
def test_a_replica_that_is_killed_in_mid_download_leaves_no_half_model(cluster, applications, repository):
    folder, _ = repository
    applications.append("killed")
    made = deployment(repository, seconds=3.0).options(ray_actor_options={"num_cpus": 0.5})
    target = serve.RunTarget(made.bind(), "killed", "/killed")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    wait_for((folder / "runs.txt").exists)
    time.sleep(0.5)
    os.kill(runs(folder)[0], signal.SIGKILL)
    wait_for(lambda: serve.status().applications["killed"].status == "RUNNING", 90)
    answer = requests.post(f"{cluster.address}/killed/predict", json={"inputs": ["a"]}, timeout=30)
    assert answer.json()["outputs"][0].startswith("whole: a")
    assert len(runs(folder)) == 2


def wait_for(happened, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_gpus_that_the_cluster_has_not_are_refused_at_once(cluster):
    started = time.monotonic()
    with pytest.raises(ResourcesMissing):
        deployment_from_handler(Shout, gpus=8)
    assert time.monotonic() - started < 5
