"""On a real Ray cluster, over HTTP: what only the whole can show."""

import asyncio
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import requests
import yaml
from ray import serve

from registry_serve import (
    AppArgs,
    ConfigurationError,
    Limits,
    ModelNotFound,
    SignatureConflict,
    SignatureMissing,
    VersionNotFound,
    app,
    deployment_from_model_name,
)
from registry_serve.deployment import deployment_name
from tests.toys import Constant, Shout

pytestmark = pytest.mark.cluster


@pytest.fixture
def toy(cluster, shelf):
    """``toy`` served at the root; gives its address."""

    def make(**options):
        deployment = deployment_from_model_name("toy", tracking_uri=shelf.uri, **options)
        serve.run(deployment.bind(), name="toy", route_prefix="/")
        shelf.loads()
        return cluster.address

    yield make
    serve.delete("toy")


def ask(address, version="", **row):
    return requests.post(
        f"{address}/serve", json=row or {"prompt": "a"}, headers={"serve_multiplexed_model_id": version}, timeout=30
    )


def test_one_endpoint_serves_every_compatible_version(toy, shelf):
    address = toy()
    assert ask(address).json() == [{"text": "one:a"}]
    second = ask(address, "2")
    assert (second.json(), second.headers["serve-model-version"]) == ([{"text": "two:a"}], "2")
    assert len(second.headers["x-request-id"].split(",")) == 1
    conflict = ask(address, "3")
    assert conflict.status_code == 409
    assert [each["column"] for each in conflict.json()["differences"]] == ["prompt", "other"]
    assert ask(address, "challenger").json() == [{"text": "two:a"}]
    assert requests.post(f"{address}/serve/", json=[{"prompt": "a"}, {"prompt": "b"}], timeout=30).json() == [
        {"text": "one:a"},
        {"text": "one:b"},
    ]
    assert shelf.loads() == ["two"]


def test_what_is_refused_evicts_no_warm_version(toy, shelf):
    address = toy()
    ask(address, "2")
    assert shelf.loads() == ["two"]
    for version in ("99", "@nobody", "../1"):
        assert ask(address, version).status_code == 404
    for _ in range(100):
        assert ask(address, "3").status_code == 409
    assert ask(address, "5").status_code == 500
    assert ask(address).json() == [{"text": "one:a"}]
    assert ask(address, "2").json() == [{"text": "two:a"}]
    assert shelf.loads() == ["broken"]
    replica = requests.get(f"{address}/model", timeout=30).json()["replica"]
    assert (replica["evictions"], replica["loads"]) == (0, 3)


def test_two_versions_stay_loaded_and_the_default_is_one_of_them(toy, shelf):
    address = toy()
    for version in ("2", "1", "6", "1", "2"):
        assert ask(address, version).status_code == 200
    assert shelf.loads() == ["two", "six", "two"]
    described = requests.get(f"{address}/model", timeout=30).json()
    assert {each["version"]: each["state"] for each in described["versions"]} == {
        "1": "ready",
        "2": "ready",
        "3": "absent",
        "4": "absent",
        "5": "absent",
        "6": "absent",
    }


def test_first_requests_at_the_same_time_load_once(toy, shelf):
    address = toy()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(address, "2").json(), range(20)))
    assert answers == [[{"text": "two:a"}]] * 20
    assert shelf.loads() == ["two"]


def test_one_version_answers_while_another_loads_for_seconds(toy):
    address = toy()
    ask(address)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(ask, address, "4")
        time.sleep(0.3)
        waits = []
        while not loading.done():
            started = time.monotonic()
            assert ask(address).status_code == 200
            waits.append(time.monotonic() - started)
            assert requests.get(f"{address}/health/ready", timeout=5).status_code == 200
    assert loading.result().json() == [{"text": "four:a"}]
    assert len(waits) > 10
    assert max(waits) < 1.0


def test_a_client_that_leaves_cancels_no_load(toy, shelf):
    address = toy()
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{address}/versions/4/serve", json={"prompt": "a"}, timeout=0.5)
    assert ask(address, "4").json() == [{"text": "four:a"}]
    assert shelf.loads() == ["four"]


def test_errors_of_the_model_are_problems_without_a_trace(toy):
    address = toy()
    failed = ask(address, prompt="raise")
    assert failed.status_code == 500
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.json()["request_id"] == failed.headers["x-request-id"]
    assert "secret" not in failed.text
    assert ask(address, prompt="exit").status_code == 500
    assert ask(address).status_code == 200
    assert requests.post(f"{address}/serve", data="{bad", timeout=30).status_code == 400
    assert ask(address, prompt=5).json()["errors"] == [{"location": ["prompt"], "message": "must be a string"}]


def test_a_large_body_is_served_up_to_the_limit(toy):
    address = toy(limits=Limits(max_body_bytes=8 * 2**20))
    rows = [{"prompt": "x" * 1000}] * 6000
    assert len(requests.post(f"{address}/serve", json=rows, timeout=60).json()) == 6000
    refused = requests.post(f"{address}/serve", json=[*rows, *rows], timeout=60)
    assert (refused.status_code, refused.json()["limit_bytes"]) == (413, 8 * 2**20)


def test_keys_are_read_on_the_replica(toy, tmp_path):
    file = tmp_path / "keys"
    file.write_text("open-sesame\n")
    address = toy(api_key_file=file)
    assert ask(address).status_code == 401
    allowed = requests.post(
        f"{address}/serve", json={"prompt": "a"}, headers={"authorization": "Bearer open-sesame"}, timeout=30
    )
    assert allowed.status_code == 200
    assert requests.get(f"{address}/health/ready", timeout=30).status_code == 200


def test_other_deployments_call_it_through_a_handle(toy, cluster):
    @serve.deployment
    class Caller:
        def __init__(self, handle):
            self.handle = handle

        async def __call__(self, request):
            second = self.handle.options(multiplexed_model_id="2")
            return await asyncio.gather(
                self.handle.predict.remote({"prompt": "a"}), second.predict.remote([{"prompt": "b"}])
            )

    toy()
    handle = serve.get_app_handle("toy")
    serve.run(Caller.bind(handle), name="caller", route_prefix="/caller")
    try:
        answered = requests.get(f"{cluster.address}/caller", timeout=30).json()
        assert answered == [[{"text": "one:a"}], [{"text": "two:b"}]]
        with pytest.raises(SignatureConflict, match="'prompt' is missing"):
            handle.options(multiplexed_model_id="3").predict.remote({"prompt": "a"}).result()
        assert handle.describe.remote().result()["name"] == "toy"
    finally:
        serve.delete("caller")


def test_several_models_live_side_by_side(cluster, shelf):
    shelf.log("other model", Shout("other", column="question"), column="question")
    shelf.log("other:model".replace(":", "."), Shout("dotted"))
    names = {"/one": "toy", "/two": "other model", "/three": "other.model"}
    try:
        for prefix, name in names.items():
            bound = deployment_from_model_name(name, tracking_uri=shelf.uri).options(num_replicas=1).bind()
            serve.run(bound, name=name, route_prefix=prefix)
        assert requests.post(f"{cluster.address}/one/serve", json={"prompt": "a"}, timeout=30).json() == [
            {"text": "one:a"}
        ]
        two = requests.post(f"{cluster.address}/two/serve", json={"question": "a"}, timeout=30)
        assert two.json() == [{"text": "other:a"}]
        wrong = requests.post(f"{cluster.address}/two/serve", json={"prompt": "a"}, timeout=30)
        assert wrong.status_code == 422
        three = requests.post(f"{cluster.address}/three/versions/1/serve/", json={"prompt": "a"}, timeout=30)
        assert three.json() == [{"text": "dotted:a"}]
        for prefix, name in names.items():
            document = requests.get(f"{cluster.address}{prefix}/openapi.json", timeout=30).json()
            assert document["info"]["title"] == name
            page = requests.get(f"{cluster.address}{prefix}/docs", timeout=30)
            script = page.text.split('<script src="')[1].split('"')[0]
            assert requests.get(f"{cluster.address}{script}", timeout=30).status_code == 200
        deployments = {next(iter(each.deployments)) for each in serve.status().applications.values()}
        assert deployments == {"toy", "other_model", "other.model"}
    finally:
        for name in names.values():
            serve.delete(name)


def test_a_deployment_is_named_after_its_model():
    assert deployment_name("translation_model") == "translation_model"
    assert deployment_name("größe #1") == "gr__e__1"


def test_what_cannot_be_served_is_refused_when_it_is_built(shelf, tmp_path):
    unsigned = shelf.log("unsigned", Constant(1), signature=False)

    def build(*arguments, **options):
        return deployment_from_model_name(*arguments, tracking_uri=shelf.uri, **options)

    with pytest.raises(SignatureMissing, match="input_example"):
        build("unsigned", unsigned)
    with pytest.raises(ModelNotFound, match="no registered model 'nothing'"):
        build("nothing")
    with pytest.raises(VersionNotFound, match="Available: @challenger, @champion, 6, 5"):
        build("toy", "99")
    with pytest.raises(ConfigurationError, match="is no version"):
        build("toy", "../1")
    with pytest.raises(ConfigurationError, match="compatibility"):
        build("toy", compatibility="loose")
    with pytest.raises(ConfigurationError, match="max_models"):
        build("toy", max_models_per_replica=0)
    with pytest.raises(ConfigurationError, match="API key file"):
        build("toy", api_key_file=tmp_path / "missing")


def test_the_default_may_be_an_alias_and_does_not_move_with_it(cluster, shelf):
    shelf.log("moving", Shout("first"))
    shelf.log("moving", Shout("second"))
    shelf.alias("moving", "champion", "1")
    bound = deployment_from_model_name("moving", "@champion", tracking_uri=shelf.uri).bind()
    serve.run(bound, name="moving", route_prefix="/moving")
    try:
        address = f"{cluster.address}/moving"
        shelf.alias("moving", "champion", "2")
        time.sleep(5.5)
        assert ask(address).json() == [{"text": "first:a"}]
        assert ask(address, "champion").json() == [{"text": "second:a"}]
    finally:
        serve.delete("moving")


def test_a_default_that_was_replaced_does_not_start(cluster, shelf):
    shelf.log("replaced", Shout("first"))
    built = deployment_from_model_name("replaced", tracking_uri=shelf.uri)
    shelf.client.delete_registered_model("replaced")
    shelf.log("replaced", Shout("impostor"))
    with pytest.raises(RuntimeError, match="deploy"):
        serve.run(built.bind(), name="replaced", route_prefix="/replaced")
    status = serve.status().applications["replaced"].deployments["replaced"]
    assert "not the model any more" in status.message
    serve.delete("replaced")


def test_app_chooses_the_model_that_is_meant(shelf, tmp_path, monkeypatch):
    def named(**args):
        return app(AppArgs(tracking_uri=shelf.uri, **args))._bound_deployment.name

    with pytest.raises(ConfigurationError, match=r"There are: .*toy"):
        named()
    assert named(model="toy", version="@challenger") == "toy"
    monkeypatch.setenv("REGISTRY_SERVE_MODEL", "toy")
    assert named(limits='{"request_timeout_s": 5}', versions="1,2", max_models_per_replica="3") == "toy"
    monkeypatch.delenv("REGISTRY_SERVE_MODEL")
    shelf.client.set_registered_model_tag("toy", "registry_serve.default", "true")
    try:
        assert named() == "toy"
    finally:
        shelf.client.delete_registered_model_tag("toy", "registry_serve.default")
    for wrong in ({"nonsense": 1}, {"limits": '{"nonsense": 1}'}, {"compatibility": "loose"}):
        with pytest.raises(ValueError, match=r"nonsense|exact"):
            AppArgs(**wrong)


def run_until_served(command, check, environment):
    """Start a command, wait until ``check`` passes, and end it so that it leaves Serve, which tests share, alone."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while not check():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(process.communicate(timeout=10)[0])
            time.sleep(0.5)
    finally:
        process.kill()
        process.wait(timeout=60)


def answers(address, prefix, row, expected):
    def check():
        try:
            response = requests.post(f"{address}{prefix}/serve", json=row, timeout=10)
        except requests.RequestException:  # not there yet, or not yet awake
            return False
        return response.status_code == 200 and response.json() == expected

    return check


@pytest.fixture
def commands(cluster):
    """Where Ray's commands are, and the environment that points them at this cluster."""
    folder = Path(sys.executable).parent
    return folder, {**os.environ, "RAY_ADDRESS": cluster.gcs, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.slow
def test_serve_run_builds_the_app_from_flat_arguments(cluster, shelf, commands):
    folder, environment = commands
    environment["MLFLOW_TRACKING_URI"] = shelf.uri
    command = [folder / "serve", "run", "registry_serve:app", "model=toy", "version=@challenger", "versions=1,2"]
    run_until_served(command, answers(cluster.address, "", {"prompt": "a"}, [{"text": "two:a"}]), environment)
    serve.delete("default")


@pytest.mark.slow
def test_serve_deploy_takes_a_config_of_several_models(cluster, shelf, commands, tmp_path):
    folder, environment = commands
    shelf.log("second", Shout("second", column="question"), column="question")
    config = yaml.safe_load(Path("serve_config.yaml").read_text())
    config["http_options"]["port"] = cluster.port
    first, second, _ = config["applications"]
    first["args"] |= {"model": "toy", "tracking_uri": shelf.uri}
    first["deployments"][0]["name"] = "toy"
    second["args"] |= {"model": "second", "tracking_uri": shelf.uri}
    second["deployments"][0]["name"] = "second"
    config["applications"] = [first, second]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [folder / "serve", "deploy", "-a", cluster.dashboard, file]
    deployed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert deployed.returncode == 0, deployed.stderr
    both = [
        answers(cluster.address, "", {"prompt": "a"}, [{"text": "one:a"}]),
        answers(cluster.address, "/question_answerer", {"question": "a"}, [{"text": "second:a"}]),
    ]
    try:
        deadline = time.monotonic() + 90
        while not all(check() for check in both):
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.5)
    finally:
        for name in ("translation_model", "question_answerer"):
            serve.delete(name)


def test_the_documentation_page_works_without_the_internet(toy, browser):
    page = browser.new_page()
    elsewhere = []
    page.on("request", lambda request: elsewhere.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto(f"{toy()}/docs")
    page.wait_for_selector("text=/serve")
    page.click("text=POST/servePredict")
    page.wait_for_selector("text=Request body")
    page.click("text=Try it out")
    page.click("text=Execute")
    page.wait_for_selector("text=one:hello")
    assert elsewhere == []


@pytest.mark.slow
def test_ray_is_told_what_a_replica_holds(toy):
    address = toy()
    for version in ("2", "1", "6"):
        ask(address, version)
    node = ray.nodes()[0]
    metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 40
    while True:
        held = re.findall(
            r'registered_multiplexed_model_id\{[^}]*deployment="toy"[^}]*model_id="(\w+)"[^}]*\} 1',
            requests.get(metrics, timeout=10).text,
        )
        if sorted(held) == ["1", "6"]:
            return
        assert time.monotonic() < deadline, f"Ray believes that the replica holds {held}"
        time.sleep(1)
