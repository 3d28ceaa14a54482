"""Handlers as versions of a registered model: what is stored, and that they answer as they do without MLflow."""

import asyncio
import json
import sys
import threading
from contextlib import asynccontextmanager

import httpx
import mlflow
import pandas as pd
import pytest
import requests
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema
from ray import serve

from registry_serve import deployment_from_model_name
from registry_serve.errors import ConfigurationError, DownloadFailed, HandlerInvalid
from registry_serve.handlers import HandlerSpec
from registry_serve.handlers.registration import log_handler
from registry_serve.planes import handler_plane
from registry_serve.policies import BatchPolicy, Limits, RegistryAddress
from registry_serve.protocols.mosaicml import handler_app
from registry_serve.registry import Registry
from tests.mlflow_server import made_global

TEXT = ModelSignature(Schema([ColSpec(DataType.string, "input")]))


@pytest.fixture
def log(shelf, tmp_path):
    """Registers a handler, given as the text of its module or as ``log_handler`` takes it."""

    def make(name, handler, **options):
        if isinstance(handler, str) and "\n" in handler:
            (tmp_path / f"{name}_handler.py").write_text(handler)
            handler, options["code_paths"] = f"{name}_handler.Handler", [tmp_path]
        with made_global(shelf.uri), mlflow.start_run(experiment_id=shelf.experiment):
            return log_handler(handler, registered_model_name=name, **options)

    return make


def made(handler):
    """The class that the text of a module defines."""
    names = {}
    exec(handler, names)
    return names["Handler"]


@asynccontextmanager
async def deployed(handler, parameters=None):
    """The same handler without MLflow."""
    spec = HandlerSpec(handler, parameters or {})
    plane = handler_plane(spec, "direct", batching=BatchPolicy("on"), limits=Limits())
    await plane.start()
    transport = httpx.ASGITransport(handler_app(plane, "direct"), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://serve.test") as http:
        yield http
    await plane.aclose()


ECHO = """
import json


class Handler:
    def predict(self, model_requests):
        return [[json.dumps(each, sort_keys=True), type(each["input"]).__name__] for each in model_requests]
"""

PLAIN = """
class Handler:
    def predict(self, model_requests):
        return [each["input"] for each in model_requests]
"""

BYTES = """
class Handler:
    def predict(self, model_requests):
        return [each["input"].encode() for each in model_requests]
"""

ANNOTATED = """
from typing import TypedDict


class Request(TypedDict):
    input: str
    parameters: dict[str, int]


class Handler:
    def predict(self, model_requests: list[Request]) -> list[float]:
        return [len(each["input"]) / each["parameters"].get("by", 1) for each in model_requests]
"""

HELLO = """
class Handler:
    built = 0

    def __init__(self, greeting="hello", **kwargs):
        Handler.built += 1
        self.greeting = greeting

    def predict(self, model_requests):
        return [self.greet(each["input"], **each["parameters"]) for each in model_requests]

    def greet(self, whom, times=0):
        return f"{self.greeting} {whom}" + "!" * times
"""


# --- a version like any other ----------------------------------------------------------------------------------------


async def test_a_logged_handler_answers_rows_and_the_requests_of_mosaicmls_clients(client, log):
    log("hello", HELLO, model_parameters={"greeting": "hi"}, input_example=["you"], parameters={"times": 1})
    async with client("hello") as http:
        assert (await http.post("/serve", json=[{"input": "a"}, {"input": "b"}])).json() == ["hi a!", "hi b!"]
        enveloped = await http.post("/serve", json={"inputs": [{"input": "a"}], "params": {"times": 3}})
        assert enveloped.json() == ["hi a!!!"]
        answer = await http.post("/predict", json={"inputs": ["a", "b"], "parameters": {"times": 0}})
        assert answer.json() == {"outputs": ["hi a", "hi b"]}
        assert answer.headers["serve-model-version"] == "1"
        unknown = await http.post("/predict", json={"inputs": ["a"], "parameters": {"top_k": 0}})
        assert (unknown.status_code, unknown.json()["code"]) == (422, "invalid_request")
        more = await http.post("/serve", json={"input": "a", "more": 1})
        assert more.status_code == 422


EXAMPLES = {
    "texts": ["a", "b"],
    "whole_numbers": [1, 2],
    "numbers": [1.5, 2.25],
    "truths": [True, False],
    "lists": [["a", "b"], ["c"]],
    "nested_lists": [[[1.5], [2.5]]],
    "objects": [{"image": "x", "size": [1, 2]}, {"image": "y", "size": [3]}],
    "one_key_objects": [{"image": "x"}],
    "missing_texts": ["a", None],
    "missing_numbers": [1.5, None],
    "missing_lists": [["a"], None],
    "mixed": ["a", {"b": 1}, [1, 2]],
}


@pytest.mark.parametrize("inputs", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("handler", [ECHO, PLAIN], ids=["echo", "plain"])
async def test_inputs_reach_the_handler_and_answers_come_back_as_without_mlflow(client, log, request, handler, inputs):
    name = request.node.callspec.id.replace("-", "_")
    log(name, handler, input_example=inputs)
    body = {"inputs": inputs}
    async with deployed(made(handler)) as direct, client(name) as http:
        expected = (await direct.post("/predict", json=body)).json()
        assert (await http.post("/predict", json=body)).json() == expected
        rows = [{"input": each} for each in inputs]
        assert (await http.post("/serve", json={"inputs": rows})).json() == expected["outputs"]


async def test_bytes_are_text_as_without_mlflow(client, log):
    log("bytes", BYTES, input_example=["ä"])
    async with client("bytes") as http:
        assert (await http.post("/predict", json={"inputs": ["ö"]})).json() == {"outputs": ["ö"]}


async def test_rows_of_several_callers_go_together_where_they_are_independent(client, log):
    log("independent", HELLO, input_example=["you"], parameters={"times": 1})
    async with client("independent") as http:
        described = (await http.get("/model")).json()
        (version,) = (each for each in described["versions"] if each["version"] == "1")
        assert version["loaded"]["batching"]["merges_requests"]
        answers = await asyncio.gather(*(http.post("/predict", json={"inputs": [f"{n}"]}) for n in range(8)))
        assert [answer.json() for answer in answers] == [{"outputs": [f"hello {n}!"]} for n in range(8)]


async def test_a_version_with_another_signature_is_refused_before_it_is_built(client, log, tmp_path):
    log("contract", HELLO, input_example=["you"])
    note = tmp_path / "built"
    log("contract", HELLO.replace("Handler.built += 1", f"open({str(note)!r}, 'w').close()"), input_example=[1])
    note.unlink()
    async with client("contract") as http:
        refused = await http.post("/serve", json={"input": "a"}, headers={"serve_multiplexed_model_id": "2"})
        assert (refused.status_code, refused.json()["code"]) == (409, "signature_conflict")
        assert not note.exists()


async def test_an_answer_with_too_few_outputs_is_an_error(client, log):
    forgetful = "class Handler:\n    def predict(self, requests):\n        return [r['input'] for r in requests][:1]\n"
    log("forgetful", forgetful, input_example=["a"])
    async with client("forgetful") as http:
        answer = await http.post("/predict", json={"inputs": ["a", "b"]})
        assert (answer.status_code, answer.json()["code"]) == (500, "prediction_failed")


async def test_a_handler_is_closed_once_with_its_version(client, log, tmp_path):
    note = tmp_path / "closed"
    closing = HELLO + f"\n    def close(self):\n        open({str(note)!r}, 'a').write('x')\n"
    log("closing", closing, signature=TEXT)
    async with client("closing"):
        assert not note.exists()
    assert note.read_text() == "x"


async def test_without_an_example_annotations_say_what_the_columns_are(client, log):
    info = log("annotated", ANNOTATED, parameters={"by": 1})
    assert info.signature.inputs == Schema([ColSpec(DataType.string, "input")])
    assert info.signature.outputs == Schema([ColSpec(DataType.double)])
    async with client("annotated") as http:
        answer = await http.post("/predict", json={"inputs": ["abcd"], "parameters": {"by": 2}})
        assert answer.json() == {"outputs": [2.0]}


async def test_what_an_annotation_forbids_is_refused_as_the_callers_fault(client, log):
    log("picky", ANNOTATED.replace("input: str", "input: Literal['a', 'b']").replace("import ", "import Literal, "))
    async with client("picky") as http:
        assert (await http.post("/predict", json={"inputs": ["a"]})).json() == {"outputs": [1.0]}
        refused = await http.post("/predict", json={"inputs": ["c"]})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


# --- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "column"),
    [
        (["a"], DataType.string),
        ([1], DataType.long),
        ([1.5], DataType.double),
        ([True], DataType.boolean),
        ([["a"]], Array(DataType.string)),
        ([{"image": "x"}], Object([Property("image", DataType.string)])),
        (["a", None], DataType.string),
        ([1, None], DataType.double),
        ([["a"], None], AnyType()),
        (["a", 1], AnyType()),
        ([[]], AnyType()),
    ],
)
def test_the_column_has_the_type_of_the_example(log, example, column):
    info = log("typed", PLAIN, input_example=example)
    assert info.signature.inputs == Schema([ColSpec(column, "input")])


def test_the_handler_is_built_once_to_see_what_it_answers_and_not_at_all_with_a_signature(log, tmp_path):
    note = tmp_path / "built"
    counting = HELLO.replace("Handler.built += 1", f"open({str(note)!r}, 'a').write('x')")
    info = log("counted_once", counting, input_example=["you"], parameters={"times": 1})
    assert info.signature.outputs == Schema([ColSpec(DataType.string)])
    assert info.signature.params == ParamSchema([ParamSpec("times", DataType.long, 1)])
    assert note.read_text() == "x"
    info = log("counted_once", counting, input_example=["you"], parameters={"times": 1}, signature=TEXT)
    assert info.signature.params == ParamSchema([ParamSpec("times", DataType.long, 1)])
    assert note.read_text() == "x"


def test_the_version_tells_which_handler_it_runs_and_which_packages_it_needs(shelf, log, tmp_path):
    (tmp_path / "needed_by_it.py").write_text("import yaml\nimport not_installed_anywhere\n")
    needy = "import json\n\nimport httpx\n\nif not httpx:\n    import needed_by_it\n" + HELLO
    info = log("stored", needy, model_parameters={"greeting": "hi"}, signature=TEXT, tags={"team": "a"})
    registry = Registry(RegistryAddress(shelf.uri))
    folder = registry.download(registry.version("stored", "1")).directory
    told = json.loads((folder / "data" / "handler.json").read_text())
    assert told == {
        "handler": "stored_handler.Handler",
        "model_parameters": {"greeting": "hi"},
        "downloader": None,
        "download_parameters": {},
    }
    required = (folder / "requirements.txt").read_text().split()
    assert {each.partition("==")[0] for each in required} == {"mlflow", "registry-serve", "httpx", "PyYAML"}
    assert "registry-serve" in required
    assert info.metadata["registry_serve"] == {"handler": "stored_handler.Handler"}


def test_the_built_in_handler_requires_what_it_imports_itself(shelf, log):
    log("built_in", None, model_parameters={"task": "text-generation"}, signature=TEXT)
    registry = Registry(RegistryAddress(shelf.uri))
    folder = registry.download(registry.version("built_in", "1")).directory
    required = (folder / "requirements.txt").read_text().split()
    assert {"registry-serve", "torch", "transformers"} <= {each.partition("==")[0] for each in required}


def test_logging_leaves_no_modules_and_no_paths_behind(log):
    before = list(sys.path)
    log("tidy", HELLO, input_example=["you"])
    assert "tidy_handler" not in sys.modules
    assert sys.path == before


async def test_changed_code_is_what_is_logged_and_what_runs(client, log):
    log("changed", HELLO, input_example=["you"])
    info = log("changed", HELLO.replace("return f", "return 0 and f"), input_example=["you"])
    assert info.signature.outputs == Schema([ColSpec(DataType.long)])


def test_packages_folders_and_files_go_along(log, shelf, tmp_path):
    package = tmp_path / "greetings"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("from one_file import WORD\n")
    (package / "handler.py").write_text(
        "from .words import WORD\n\n\nclass Greeter:\n    def predict(self, model_requests):\n"
        "        return [WORD for _ in model_requests]\n"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one_file.py").write_text("WORD = 'hi'\n")
    info = log(
        "packaged",
        "greetings.handler.Greeter",
        code_paths=[package, tmp_path / "elsewhere" / "one_file.py"],
        input_example=["x"],
    )
    assert info.signature.outputs == Schema([ColSpec(DataType.string)])


async def test_a_download_happens_when_a_version_is_loaded_and_once(client, log, tmp_path):
    note = tmp_path / "downloads"
    (tmp_path / "fetching.py").write_text(
        f"def fetch(to, text):\n    open({str(note)!r}, 'a').write('x')\n    open(to, 'w').write(text)\n"
    )
    reading = (
        f"class Handler:\n    def __init__(self):\n        self.text = open({str(tmp_path / 'weights')!r}).read()\n\n"
        "    def predict(self, requests):\n        return [self.text for _ in requests]\n"
    )
    log(
        "downloading",
        reading,
        downloader="fetching.fetch",
        download_parameters={"to": str(tmp_path / "weights"), "text": "heavy"},
        signature=TEXT,
    )
    assert not note.exists()
    for _ in range(2):
        async with client("downloading") as http:
            assert (await http.post("/predict", json={"inputs": ["a"]})).json() == {"outputs": ["heavy"]}
    assert note.read_text() == "x"


async def test_a_logged_handler_can_stream_for_mlflow(shelf, log):
    streaming = HELLO + "\n    def predict_stream(self, input, parameters):\n        yield from input\n"
    info = log("streaming", streaming, input_example=["you"])
    with made_global(shelf.uri):
        model = mlflow.pyfunc.load_model(info.model_uri)
        for given in ({"input": "abc"}, pd.DataFrame({"input": ["abc"]})):
            assert list(model.predict_stream(given)) == ["a", "b", "c"]


# --- what is refused -------------------------------------------------------------------------------------------------


class Outer:
    class Nested:
        def predict(self, model_requests):
            return []


OLDER = "class Handler:\n    def predict(self, **inputs):\n        return []\n"
OTHER = ModelSignature(Schema([ColSpec(DataType.string, "prompt")]))
WITH_PARAMS = ModelSignature(TEXT.inputs, params=ParamSchema([ParamSpec("n", DataType.long, 1)]))
REFUSED = {
    "no module": ("nothing_here.Handler", {}, HandlerInvalid, "there is no module 'nothing_here'"),
    "not packaged": (f"{__name__}.Outer", {}, HandlerInvalid, "its module 'tests' is in no installed package"),
    "nested": (Outer.Nested, {}, HandlerInvalid, "write it at the top of a module"),
    "older": (OLDER, {}, HandlerInvalid, "knows no rows: write predict(self, model_requests)"),
    "nothing known": (PLAIN, {}, ConfigurationError, "give input_example=[...] or signature=..."),
    "no example": (PLAIN, {"input_example": []}, ConfigurationError, "needs at least one input"),
    "no path": ("a.B", {"code_paths": ["nowhere"]}, ConfigurationError, "There is no folder or file"),
    "no JSON": (PLAIN, {"model_parameters": {"a": object()}}, HandlerInvalid, "its parameters are stored as JSON"),
    "other columns": (PLAIN, {"signature": OTHER}, ConfigurationError, "has one input column, 'input'"),
    "params twice": (PLAIN, {"signature": WITH_PARAMS, "parameters": {"n": 1}}, ConfigurationError, "leave out param"),
    "no type": (PLAIN, {"input_example": ["a"], "parameters": {"n": None}}, ConfigurationError, "The parameter 'n'"),
    "empty": (PLAIN, {"input_example": ["a"], "parameters": {"n": []}}, ConfigurationError, "The parameter 'n'"),
    "raises": (BYTES, {"input_example": [1]}, HandlerInvalid, "it cannot answer its input_example: AttributeError"),
    "download": (
        PLAIN + "\n\ndef fails():\n    raise OSError('no network')\n",
        {"input_example": ["a"], "downloader": "refused_handler.fails"},
        DownloadFailed,
        "cannot be downloaded",
    ),
}


@pytest.mark.parametrize(("handler", "options", "error", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_logged_is_refused_with_what_to_do(log, handler, options, error, told):
    with pytest.raises(error) as raised:
        log("refused", handler, **options)
    assert told in str(raised.value)


def test_modules_that_would_take_the_place_of_others_are_refused(log, tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigurationError, match="brings a module 'json'"):
        log("clash", HELLO, signature=TEXT)


def test_what_mlflow_keeps_beside_the_code_does_not_go_along(tmp_path, monkeypatch):
    project = tmp_path / "project"
    for folder in ("mlruns", "mlartifacts", "node_modules", "words"):
        (project / folder).mkdir(parents=True)
        (project / folder / "large.txt").write_text("x")
    (project / "hello.py").write_text(HELLO)
    (project / "mlflow.db").write_text("of an older project")
    (project / "words.db").write_text("of the handler")
    monkeypatch.chdir(project)
    with made_global("sqlite:///mine.db"):
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("here", (tmp_path / "store").as_uri()))
        for _ in range(2):
            info = log_handler("hello.Handler", code_paths=["."], input_example=["you"])
    code = tmp_path / "store" / "models" / info.model_id / "artifacts" / "code"
    found = {path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()}
    assert {each for each in found if "__pycache__" not in each} == {"hello.py", "words.db", "words/large.txt"}


def test_local_modules_that_would_stay_behind_are_refused(log, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "left_behind.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "lonely.py").write_text("import left_behind\n" + HELLO)
    with pytest.raises(HandlerInvalid, match="its module 'left_behind' is in no installed package"):
        log("lonely", "lonely.Handler", code_paths=[tmp_path / "code"], signature=TEXT)


# --- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.slow
def test_two_versions_of_one_handler_answer_on_one_endpoint_and_a_third_gets_409(cluster, shelf, log):
    log("greeter", HELLO, input_example=["you"])
    log("greeter", HELLO.replace('greeting="hello"', 'greeting="good bye"'), input_example=["you"])
    log("greeter", HELLO, input_example=[1])
    served = deployment_from_model_name("greeter", tracking_uri=shelf.uri)
    serve.run(served.options(ray_actor_options={"num_cpus": 0.1}).bind(), name="greeter", route_prefix="/greeter")
    try:
        answers = {}

        def ask(version):
            headers = {"serve_multiplexed_model_id": version}
            url = f"{cluster.address}/greeter/predict"
            answers[version] = requests.post(url, json={"inputs": ["a"]}, headers=headers, timeout=120)

        threads = [threading.Thread(target=ask, args=(version,)) for version in "123"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers["1"].json() == {"outputs": ["hello a"]}
        assert answers["2"].json() == {"outputs": ["good bye a"]}
        assert answers["3"].status_code == 409
        assert answers["3"].json()["code"] == "signature_conflict"
        assert [answers[version].headers["serve-model-version"] for version in "12"] == ["1", "2"]
    finally:
        serve.delete("greeter")
