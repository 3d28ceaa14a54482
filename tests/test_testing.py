"""The test kit for users: its fixtures in a project of their own, its clients, its registry, and what it costs."""

import logging
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from registry_serve.errors import (
    ConfigurationError,
    HandlerInvalid,
    LoadFailed,
    ModelNotFound,
    VersionNotFound,
    WarmUpFailed,
)
from registry_serve.policies import Limits
from registry_serve.testing import HandlerClient, MemoryRegistry, RequestFailed, assert_problem

ROOT = Path(__file__).parent.parent
EXAMPLE = [{"x": 1.5}]


def run_project(folder, *arguments):
    """Run pytest in a project that only has this package installed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


class Shout:
    closed = 0

    def __init__(self, punctuation="!", **kwargs):
        self.punctuation = punctuation
        self.thread = threading.get_ident()

    def predict(self, model_requests):
        assert threading.get_ident() == self.thread
        return [each["input"].upper() + self.punctuation for each in model_requests]

    def predict_stream(self, input, parameters):
        for letter in input:
            if letter == parameters.get("stop"):
                raise ValueError("a secret")
            yield letter

    def close(self):
        Shout.closed += 1


# --- in a project of its own -----------------------------------------------------------------------------------------


PROJECT = """
import sys


def test_the_plugin_is_there_and_imports_nothing(pytestconfig):
    assert pytestconfig.pluginmanager.hasplugin("registry_serve")
    heavy = {"ray", "mlflow", "pandas", "fastapi", "httpx", "torch"}
    assert not heavy & sys.modules.keys()


def test_the_fixtures_need_no_cluster(handler_client, memory_registry):
    from registry_serve import ModelHandlerInterface

    class Echo(ModelHandlerInterface):
        def predict(self, model_requests):
            return [each["input"] for each in model_requests]

    assert handler_client(Echo).predict(["a"]) == ["a"]
    memory_registry.add("double", lambda frame: list(frame["x"] * 2), input_example=[{"x": 1.5}])
    assert memory_registry.client("double").serve({"x": 2}) == [4.0]
    assert "ray" not in sys.modules
    assert "torch" not in sys.modules
"""


def test_the_plugin_imports_nothing_and_its_fixtures_no_ray(tmp_path):
    (tmp_path / "test_it.py").write_text(PROJECT)
    done = run_project(tmp_path)
    assert "2 passed" in done.stdout, done.stdout


def test_the_examples_of_the_documentation_pass_each_in_less_than_a_second(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"test_example_{number}.py").write_text(block)
    done = run_project(tmp_path, "--durations=0", "-vv")
    assert "7 passed" in done.stdout, done.stdout
    spent = defaultdict(float)
    for seconds, test in re.findall(r"([\d.]+)s (?:setup|call|teardown) +(test_example\S+)", done.stdout):
        spent[test] += float(seconds)
    assert len(spent) == 7
    assert statistics.median(spent.values()) < 1.0


# --- handlers --------------------------------------------------------------------------------------------------------


def test_a_client_asks_a_handler_and_closes_it_at_the_end(handler_client):
    Shout.closed = 0
    with HandlerClient(Shout, model_parameters={"punctuation": "?"}) as client:
        assert client.predict(["a", "b"]) == ["A?", "B?"]
        assert client.predict("a") == ["A?"]
        assert client.stream("ab") == ["a", "b"]
        assert client.stream("") == []
        assert client.get("/ping").status_code == 200
        assert Shout.closed == 0
    assert Shout.closed == 1
    with pytest.raises(RuntimeError, match="use it inside 'with'"):
        client.predict(["a"])


def test_several_clients_live_side_by_side(handler_client):
    one, two = handler_client(Shout), handler_client(Shout, model_parameters={"punctuation": "?"})
    assert (one.predict(["a"]), two.predict(["a"]), one.predict(["b"])) == (["A!"], ["A?"], ["B!"])


def test_errors_of_a_handler_are_raised_and_told_in_the_log(handler_client, caplog):
    client = handler_client(Shout)
    with caplog.at_level(logging.ERROR), pytest.raises(RequestFailed, match="500 prediction_failed") as raised:
        client.predict([5])
    assert raised.value.response.status_code == 500
    assert "'int' object has no attribute 'upper'" in caplog.text
    with pytest.raises(RequestFailed, match="prediction_failed"):
        client.stream("ab", {"stop": "b"})
    with pytest.raises(RequestFailed, match="422 invalid_request: inputs must hold at least one input"):
        client.predict([])


def test_a_handler_that_hangs_ends_with_a_timeout(handler_client):
    class Slow:
        def predict(self, model_requests):
            time.sleep(0.3)
            return [0]

    client = handler_client(Slow, limits=Limits(request_timeout_s=0.1))
    assert_problem(client.post("/predict", json={"inputs": ["a"]}), 504, "prediction_timeout")


def leave_weights(folder):
    Path(folder, "weights").write_text("heavy")
    return folder


def test_a_download_comes_before_the_handler(handler_client, tmp_path, monkeypatch):
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", str(tmp_path / "artifacts"))

    class Loaded:
        def __init__(self, model_name_or_path):
            self.text = Path(model_name_or_path, "weights").read_text()

        def predict(self, model_requests):
            return [self.text for _ in model_requests]

    client = handler_client(Loaded, downloader=leave_weights, download_parameters={"folder": str(tmp_path)})
    assert client.predict(["a"]) == ["heavy"]


def test_what_is_no_handler_is_told_at_once(handler_client):
    with pytest.raises(HandlerInvalid, match="it is not a class"):
        handler_client("registry_serve.testing.plugin.handler_client")
    with pytest.raises(HandlerInvalid, match="has no method predict"):
        handler_client(dict)
    with pytest.raises(ConfigurationError, match="batching must be"):
        handler_client(Shout, batching="perhaps")


# --- the registry ----------------------------------------------------------------------------------------------------


class WithParams:
    def predict(self, data, params):
        return [params["times"]] * len(data)


class Python(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.factor = 10

    def predict(self, context, model_input, params=None):
        return list(model_input["x"] * self.factor)


@pytest.fixture
def doubles(memory_registry):
    memory_registry.add("m", lambda frame: list(frame["x"] * 2), input_example=EXAMPLE, aliases=["champion"])
    memory_registry.add("m", lambda frame: list(frame["x"] * 3), input_example=EXAMPLE)
    memory_registry.add("m", lambda frame: list(frame["y"] * 2), input_example=[{"y": 1.5}])
    return memory_registry


def test_versions_are_asked_for_in_every_way(doubles):
    client = doubles.client("m")
    for version, answer in ((None, 2), (1, 2), ("2", 3), ("champion", 2), ("@champion", 2)):
        assert client.serve({"x": 1}, version=version) == [answer]
        assert client.predict([1, 2], version=version) == [answer, answer * 2]
    assert client.post("/versions/2/serve", json={"x": 1}).json() == [3.0]
    assert doubles.client("m", default="latest").describe()["default_version"] == "3"
    assert doubles.client("m", default="champion").describe()["default_version"] == "1"


def test_versions_are_refused_as_on_a_cluster(doubles):
    client = doubles.client("m", versions=[1, 3])

    def post(version):
        return client.post("/serve", json={"x": 1}, headers={"serve-multiplexed-model-id": version})

    assert_problem(post("3"), 409, "signature_conflict")
    assert_problem(post("2"), 403, "version_forbidden")
    assert assert_problem(post("9"), 404, "version_not_found")["available"] == ["@champion", "3", "1"]
    assert_problem(post("@nobody"), 404, "version_not_found")
    assert client.describe()["versions"][0]["state"] == "absent"


def test_what_is_added_later_is_seen_at_once(doubles):
    client = doubles.client("m")
    assert_problem(client.post("/versions/4/serve", json={"x": 1}), 404, "version_not_found")
    assert doubles.add("m", lambda frame: list(frame["x"] * 5), input_example=EXAMPLE) == "4"
    assert client.serve({"x": 1}, version=4) == [5.0]
    doubles.alias("m", "champion", 4)
    assert client.serve({"x": 1}, version="@champion") == [5.0]


def test_backward_compatible_versions_are_allowed_where_asked_for(memory_registry):
    column, more = ColSpec(DataType.double, "x"), ColSpec(DataType.double, "y", required=False)
    memory_registry.add("m", lambda frame: [1], signature=ModelSignature(Schema([column])))
    memory_registry.add("m", lambda frame: [2], signature=ModelSignature(Schema([column, more])))
    assert memory_registry.client("m", compatibility="backward").serve({"x": 1}, version=2) == [2]
    with pytest.raises(RequestFailed, match="409"):
        memory_registry.client("m").serve({"x": 1}, version=2)


def test_models_of_every_kind_get_what_mlflow_gives_them(memory_registry):
    seen = []

    def frame_types(frame):
        seen.append({name: str(dtype) for name, dtype in frame.dtypes.items()})
        return ["ok"] * len(frame)

    columns = Schema([ColSpec(DataType.integer, "n"), ColSpec(DataType.float, "f")])
    memory_registry.add("types", frame_types, signature=ModelSignature(columns))
    assert memory_registry.client("types").serve({"n": 1, "f": 2}) == ["ok"]
    assert seen == [{"n": "int32", "f": "float32"}]
    params = ParamSchema([ParamSpec("times", DataType.long, 7)])
    signature = ModelSignature(Schema([ColSpec(DataType.double, "x")]), params=params)
    memory_registry.add("params", WithParams(), signature=signature)
    client = memory_registry.client("params")
    assert client.serve({"x": 1}) == [7]
    assert client.serve([{"x": 1}], {"times": 2}) == [2]
    memory_registry.add("python", Python(), input_example=pd.DataFrame({"x": [1.5]}))
    assert memory_registry.client("python").serve({"x": 2}) == [20.0]


def test_rows_are_merged_only_where_the_example_shows_that_they_are_independent(memory_registry):
    memory_registry.add("alone", lambda frame: list(frame["x"] * 2), input_example=EXAMPLE)
    memory_registry.add("together", lambda frame: list(frame["x"] / frame["x"].sum()), input_example=EXAMPLE)
    merges = {}
    for name in ("alone", "together"):
        (version,) = memory_registry.client(name).describe()["versions"]
        merges[name] = version["loaded"]["batching"]["merges_requests"]
    assert merges == {"alone": True, "together": False}


def test_misuse_of_the_registry_is_told(memory_registry):
    with pytest.raises(ConfigurationError, match=r"needs a signature=\.\.\. or an input_example"):
        memory_registry.add("m", lambda frame: [1])
    with pytest.raises(ConfigurationError, match="'WithParams' is no model"):
        memory_registry.add("m", WithParams, input_example=EXAMPLE)
    with pytest.raises(ModelNotFound, match="'m'"):
        memory_registry.client("m")
    memory_registry.add("m", lambda frame: [1], input_example=EXAMPLE)
    with pytest.raises(VersionNotFound, match="'9'"):
        memory_registry.client("m", default=9)
    with pytest.raises(ConfigurationError, match="'not a version' is no version"):
        memory_registry.client("m", default="not a version")
    with pytest.raises(VersionNotFound):
        memory_registry.alias("m", "champion", 9)


def test_a_model_that_cannot_load_or_answer_its_example_is_told_when_the_client_is_made(memory_registry):
    class Unloadable(Python):
        loaded = 0

        def load_context(self, context):
            Unloadable.loaded += 1
            if Unloadable.loaded > 1:
                raise OSError("no weights")
            self.factor = 1

    memory_registry.add("unloadable", Unloadable(), input_example=EXAMPLE)
    with pytest.raises(LoadFailed):
        memory_registry.client("unloadable")
    signature = ModelSignature(Schema([ColSpec(DataType.double, "x")]))
    memory_registry.add("raises", lambda frame: 1 / 0, signature=signature, input_example=EXAMPLE)
    with pytest.raises(WarmUpFailed):
        memory_registry.client("raises")


def test_a_registry_closes_its_clients():
    with MemoryRegistry() as registry:
        registry.add("m", lambda frame: [1], input_example=EXAMPLE)
        client = registry.client("m")
    with pytest.raises(RuntimeError, match="not running"):
        client.serve({"x": 1})


# --- errors ----------------------------------------------------------------------------------------------------------

PROBLEM = {
    "type": "urn:registry-serve:error:invalid_request",
    "title": "The request is not valid",
    "status": 422,
    "detail": "inputs is required.",
    "code": "invalid_request",
    "error": "inputs is required.",
    "request_id": "r1",
}


def told(status=422, content_type="application/problem+json", request_id="r1", **changed):
    headers = {"content-type": content_type, "x-request-id": request_id}
    body = {key: value for key, value in {**PROBLEM, **changed}.items() if value is not None}
    return httpx.Response(status, headers=headers, json=body)


def test_a_problem_is_recognised_and_returned():
    assert assert_problem(told(), 422, "invalid_request", never=["secret"]) == PROBLEM


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (told(status=400), "expected status 422, got 400"),
        (told(content_type="application/json"), "expected a problem"),
        (told(code="other"), "expected the code 'invalid_request', got 'other'"),
        (told(title=None), "the error has no title"),
        (told(type="about:blank"), "the type 'about:blank' does not belong"),
        (told(status=422, request_id="r2"), "the request id is not that of x-request-id"),
        (told(error="else"), "'error' must repeat 'detail'"),
        (told(title="Traceback (most recent call last)"), "must not hold 'Traceback"),
        (told(title="a secret"), "must not hold 'secret'"),
    ],
)
def test_every_other_answer_is_none(response, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        assert_problem(response, 422, "invalid_request", never=["secret"])
