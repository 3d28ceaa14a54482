"""The examples and the page about handlers: their code runs, and their commands print what they say."""

import asyncio
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import mlflow
import pytest
import requests
from ray import serve
from typer.testing import CliRunner

import registry_serve
from registry_serve import cli, deployment_from_handler, rollout
from registry_serve.deployment_file import notices, read
from registry_serve.downloaders import Download
from registry_serve.errors import RegistryServeError, ResourcesMissing
from registry_serve.generation.parameters import GenerationParameters
from registry_serve.handlers import HandlerSpec
from registry_serve.handlers.huggingface import HuggingFaceHandler
from registry_serve.handlers.spec import DEFAULT_HANDLER
from registry_serve.planes import handler_plane
from registry_serve.policies import BatchPolicy, Limits
from registry_serve.protocols.mosaicml import handler_app
from tests.mlflow_server import embedded, made_global
from tests.test_docs import test_links_lead_somewhere as links_lead_somewhere

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/README.md"))
NAMES = [path.name for path in EXAMPLES]
#: Deployment files by the example they belong to.
FILES = [(example.name, file.name) for example in EXAMPLES for file in sorted(example.glob("*.yaml"))]
HANDLED = [(name, file) for name, file in FILES if name != "scikit_learn"]
PAGE = (ROOT / "docs" / "handlers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
#: Those that are modules, by name; the others run one after the other, but for those that need a cluster.
MODULES = {found[1]: block for block in BLOCKS if (found := re.match(r"# (\w+)\.py\n", block))}
OWN = ("hello_world", "embeddings", "shapes", "mistakes", "needy", *MODULES)
COMMAND = re.compile(r"^\$ (curl .*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)


def commands(example, name):
    """What the README asks of a deployment, and what it says is answered."""
    found = COMMAND.findall((ROOT / "examples" / example / "README.md").read_text())
    return [(asked, answer.strip()) for asked, answer in found if f":8000/{name}/" in asked]


def alike(answered, said):
    """Whether two JSON values are equal, but for the last digits of numbers and what an ellipsis leaves out."""
    if isinstance(said, dict) and isinstance(answered, dict):
        shown = said.keys() - {"..."}
        return (shown == answered.keys() or shown < said.keys()) and all(
            alike(answered[key], said[key]) for key in shown
        )
    if isinstance(said, list) and isinstance(answered, list):
        shown = said[:-1] if said[-1:] == ["..."] else said
        return (len(shown) == len(answered) or shown != said) and all(map(alike, answered, shown))
    if isinstance(said, float):
        return answered == pytest.approx(said, abs=2e-3)
    return answered == said


def check(answered, said):
    """Compare an answer with what is printed."""
    assert said, f"the README does not say what is printed: {answered}"
    line = re.sub(r"\s*\n\s*", " ", said)
    line = re.sub(r", ?\.\.\.(?= ?[]}])", lambda left_out: ', "..."', line)
    assert alike(json.loads(answered), json.loads(re.sub(r'"\.\.\."(?=})', '"...": 0', line))), answered


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """A folder with the examples, where their models are made and the downloader finds its store."""
    folder = tmp_path_factory.mktemp("examples")
    made = set()

    def prepared(name):
        target = folder / name
        if name in made:
            return target
        ignored = shutil.ignore_patterns("__pycache__", "bert", "*.npz", "*.pt", "request.json", "mlflow.db", "mlruns")
        shutil.copytree(ROOT / "examples" / name, target, ignore=ignored)
        for file in target.glob("*.yaml"):
            file.write_text(file.read_text().replace("/tmp/my_custom_location", str(target / "store")))
        for script in target.glob("make_*.py"):
            # Other tests leave MLflow's choices, such as an experiment, in the environment.
            own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
            environment = {**own, "MLFLOW_TRACKING_URI": f"sqlite:///{target}/mlflow.db"}
            subprocess.run([sys.executable, script.name], cwd=target, env=environment, check=True, timeout=200)
        made.add(name)
        return target

    return prepared


@pytest.fixture
def own_modules():
    """Forget, after a test, what it imported and where from: two examples have a package of the same name."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in OWN:
            del sys.modules[name]


@asynccontextmanager
async def served(handler=None, parameters=None, *, name="handler", download=None, paths=()):
    spec = HandlerSpec(handler or DEFAULT_HANDLER, parameters or {}, download or Download(), paths)
    plane = handler_plane(spec, name, batching=BatchPolicy("on"), limits=Limits())
    await plane.start()
    try:
        transport = httpx.ASGITransport(handler_app(plane, name), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://serve.test") as http:
            yield http
    finally:
        await plane.aclose()


def served_from_file(path):
    """Serve what a deployment file says, in this process."""
    file = read(path)
    model = file.model
    download = Download(model.downloader, model.download_parameters or {})
    return served(
        model.model_handler, model.model_parameters, name=file.name, download=download, paths=(str(path.parent),)
    )


def asked(command, folder):
    """Take a curl command apart: its path below the deployment, its headers, its body."""
    words = shlex.split(command)[1:]
    path = "/" + words.pop(0).split(":8000/")[1].split("/", 1)[1]
    body, headers = None, {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "-d":
            body = (folder / value[1:]).read_bytes() if value.startswith("@") else value.encode()
        else:
            assert option == "-H"
            headers.update([value.split(": ", 1)])
    return path, headers, body


# --- the folders -----------------------------------------------------------------------------------------------------


def test_there_are_examples_of_everything_that_is_promised():
    assert {"hello_world", "custom_downloader", "embeddings", "images", "scikit_learn"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_has_a_file_that_is_right_and_a_line_in_the_index(name):
    index = (ROOT / "examples" / "README.md").read_text()
    assert f"]({name}/README.md)" in index
    file = read(ROOT / "examples" / name / "deployment.yaml")
    written = (ROOT / "examples" / name / "README.md").read_text()
    assert "registry-serve deploy -f deployment.yaml" in written
    assert f"registry-serve delete deployment {file.name}" in written or "delete deployments" in written
    assert commands(name, file.name)


@pytest.mark.parametrize("name", [".", *NAMES])
def test_the_links_of_a_readme_lead_somewhere(name):
    links_lead_somewhere(ROOT / "examples" / name / "README.md")


def test_folders_without_a_readme_are_no_examples():
    folders = [path.name for path in (ROOT / "examples").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(folders) == NAMES


def test_only_the_walk_through_says_what_is_not_used():
    said = {(name, file): notices(read(ROOT / "examples" / name / file)) for name, file in FILES}
    assert [each for each, notice in said.items() if notice] == [("hello_world", "deployment.yaml")]


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), HANDLED)
async def test_an_example_answers_as_its_readme_says(name, file, copies, own_modules, tmp_path, monkeypatch):
    folder = copies(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    async with served_from_file(folder / file) as http:
        for command, said in commands(name, read(folder / file).name):
            path, headers, body = asked(command, folder)
            answer = await http.post(path, content=body, headers=headers)
            check(answer.text, said)


async def test_the_registered_example_answers_as_its_readme_says(copies, client):
    folder = copies("scikit_learn")
    file = read(folder / "deployment.yaml")
    uri = f"sqlite:///{folder}/mlflow.db"
    async with client(file.model.registered_model, file.model.version, uri=uri) as http:
        for command, said in commands("scikit_learn", file.name):
            path, headers, body = asked(command, folder)
            answer = await http.post(path, content=body, headers=headers)
            check(answer.text, said)


async def test_an_image_handlers_annotations_are_its_documentation(copies, own_modules):
    async with served_from_file(copies("images") / "deployment.yaml") as http:
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
    inputs = schemas["Inputs"]["properties"]
    assert inputs["inputs"]["anyOf"][1]["properties"]["image"]["type"] == "string"
    assert inputs["parameters"]["properties"]["top_k"]["maximum"] == 3
    assert schemas["Output.Shape"]["required"] == ["label", "score"]


async def test_one_bad_image_fails_alone_in_a_full_batch(copies, own_modules):
    folder = copies("images")
    good = {"inputs": json.loads((folder / "request.json").read_text())["inputs"]}
    bad = {"inputs": [{"image": "no image"}]}
    async with served_from_file(folder / "deployment.yaml") as http:
        answers = await asyncio.gather(*(http.post("/predict", json=each) for each in [good, bad, good, good] * 4))
    assert [answer.status_code for answer in answers] == [200, 422, 200, 200] * 4


async def test_the_two_embedding_handlers_agree_on_what_is_alike(copies, own_modules, monkeypatch):
    folder = copies("embeddings")
    monkeypatch.chdir(folder)
    for file in ("deployment.yaml", "default_handler.yaml"):
        async with served_from_file(folder / file) as http:
            texts = ["soup and bread", "cheese for dinner", "a train to the airport"]
            soup, cheese, train = (await http.post("/predict", json={"inputs": texts})).json()["outputs"]
        assert cosine(soup, cheese) > 0.5
        assert cosine(soup, train) < 0.3


def cosine(one, other):
    return (
        sum(a * b for a, b in zip(one, other, strict=True))
        / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5
    )


async def test_the_downloader_runs_once_for_two_that_start_together(copies, own_modules, tmp_path, monkeypatch, capfd):
    folder = copies("custom_downloader")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder / "store", tmp_path / "store")
    text = (folder / "deployment.yaml").read_text().replace(str(folder / "store"), str(tmp_path / "store"))
    (tmp_path / "deployment.yaml").write_text(text)
    shutil.copytree(folder / "hello_world", tmp_path / "hello_world")
    async with served_from_file(tmp_path / "deployment.yaml"), served_from_file(tmp_path / "deployment.yaml"):
        pass
    printed = capfd.readouterr().out
    assert printed.count("Fetched 1 of 1: greetings.json") == 1
    assert printed.count("hello world!") == 2


# --- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """Keep what is known of deployments in the test's own folder, and remove what the downloader leaves."""
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(tmp_path / "state"))
    yield
    shutil.rmtree(Path.home() / ".cache" / "hello_world", ignore_errors=True)


@contextmanager
def deployed(file, **options):
    running = rollout.deploy(file, **options)
    try:
        yield running
    finally:
        running.delete()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), FILES)
def test_an_example_is_deployed_from_its_file_and_answers_as_its_readme_says(name, file, copies, cluster, at_home):
    folder = copies(name)
    with made_global(f"sqlite:///{folder}/mlflow.db"), deployed(folder / file) as running:
        assert running.ping() == 200
        for command, said in commands(name, running.name):
            path, headers, body = asked(command, folder)
            check(requests.post(running.url + path, data=body, headers=headers, timeout=60).text, said)
    assert requests.get(f"{running.url}/ping", timeout=60).status_code == 404


@pytest.mark.cluster
@pytest.mark.slow
def test_the_walk_throughs_commands_print_what_its_readme_says(copies, cluster, at_home):
    folder = copies("hello_world")
    readme = (folder / "README.md").read_text()
    told = dict(re.findall(r"^\$ registry-serve (.*)\n((?:(?!\$ |```).*\n)+)", readme, re.MULTILINE))
    assert len(told) == 2
    for words, printed in told.items():
        words = shlex.split(words.replace("deployment.yaml", str(folder / "deployment.yaml")))
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, result.output
        output = result.output.replace(cluster.address, "http://127.0.0.1:8000").splitlines()
        assert [line for line in printed.splitlines() if line not in output] == []


@pytest.mark.cluster
@pytest.mark.slow
def test_the_registered_example_is_deployed_from_python_too(copies, cluster):
    folder = copies("scikit_learn")
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    with made_global(f"sqlite:///{folder}/mlflow.db"):
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    try:
        for command, said in commands("scikit_learn", "iris"):
            path, headers, body = asked(command, folder)
            check(requests.post(f"{cluster.address}/iris{path}", data=body, headers=headers, timeout=60).text, said)
    finally:
        serve.delete("default")


@pytest.mark.cluster
@pytest.mark.slow
def test_a_client_written_for_mosaicml_needs_another_url_and_nothing_else(copies, cluster, at_home, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("a-secret-key\n")
    with deployed(copies("hello_world") / "deployment.yaml", api_key_file=keys) as running:
        url, key = running.url, "a-secret-key"
        body = {"inputs": ["prompt 1", "prompt 2"]}
        answer = requests.post(url + "/predict", headers={"authorization": key}, data=json.dumps(body), timeout=60)
        assert answer.json() == {"outputs": ["prompt 1", "prompt 2"]}
        assert answer.request.headers.get("content-type") != "application/json"
        form = {"authorization": key, "content-type": "application/x-www-form-urlencoded"}
        assert requests.post(url + "/predict", headers=form, data=json.dumps(body), timeout=60).json() == answer.json()
        assert requests.get(url + "/ping", timeout=60).status_code == 200
        refused = requests.post(url + "/predict", headers={"authorization": "x"}, data=json.dumps(body), timeout=60)
        assert refused.status_code == 401


@pytest.mark.cluster
def test_a_gpu_that_is_not_there_is_said_at_once_and_as_the_page_says(copies, cluster, at_home):
    with pytest.raises(ResourcesMissing) as raised:
        rollout.deploy(copies("hello_world") / "deployment.yaml", gpus=1, gpu_type=None)
    kind = " of type A100"  # the file asks for one
    assert str(raised.value).replace(kind, "") in PAGE


# --- the page --------------------------------------------------------------------------------------------------------

MISTAKES = """
class NoPredict: ...

class Async:
    async def predict(self, model_requests): ...

class Two:
    def predict(self, prompt, temperature): ...

class Needs:
    def __init__(self, model_name): raise OSError(f"no weights at {model_name}")
    def predict(self, model_requests): ...

class Few:
    def predict(self, model_requests): return ["one"]

class NoList:
    def predict(self, model_requests): return "one"

def download(folder): ...
"""


@pytest.fixture
def written(tmp_path, own_modules, monkeypatch):
    """The current folder, with the page's modules in it, and with some that are wrong."""
    for name, block in {**MODULES, "mistakes": MISTAKES, "needy": "import not_there"}.items():
        (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_every_argument_of_a_handlers_deployment_is_described():
    described = PAGE.split("## Deploying from Python")[1].split("###")[0]
    for name in inspect.signature(deployment_from_handler).parameters:
        assert f"\n| `{name}` |" in described


def test_every_argument_of_log_handler_is_described():
    described = PAGE.split("## Handlers in the registry")[1].split("\n## ")[0]
    for name in inspect.signature(registry_serve.log_handler).parameters:
        assert f"`{name}`" in described


def test_every_parameter_of_the_default_handler_is_described_with_its_default():
    described = PAGE.split("## The default handler")[1].split("\n## ")[0]
    for name, parameter in inspect.signature(HuggingFaceHandler).parameters.items():
        row = next(line for line in described.splitlines() if line.startswith(f"| `{name}` |"))
        assert not isinstance(parameter.default, str) or f"| `{parameter.default}` |" in row
    rows = [line for line in described.splitlines() if line.startswith("| `")]
    for name, field in GenerationParameters.model_fields.items():
        row = next(line for line in rows if f"`{name}`" in line.split(" | ")[0])
        if isinstance(field.default, (int, float)):
            assert json.dumps(field.default) in row


def test_what_the_page_runs_without_a_cluster_runs(written, tmp_path):
    place = embedded(tmp_path / "registry")
    namespace = {"__name__": "__main__"}
    with made_global(place.uri):
        mlflow.create_experiment("handlers", artifact_location=str(place.artifacts))
        mlflow.set_experiment("handlers")
        ran = [block for block in BLOCKS if block not in MODULES.values() and "serve.run(" not in block]
        for block in ran:
            exec(compile(block, "handlers.md", "exec"), namespace)
    assert len(ran) == 3
    assert place.client.get_model_version("shout", "1").status == "READY"


@pytest.mark.parametrize(
    ("handler", "command"),
    [("shout.Shout", "predict"), ("count.Count", "predict_stream"), ("price.Price", "currency")],
)
async def test_what_the_page_asks_is_answered_as_it_says(handler, command, written):
    found = next(each for each in COMMAND.findall(PAGE) if command in each[0])
    path, headers, body = asked(found[0].replace("curl -N", "curl").replace(":8000/", ":8000/handler/"), written)
    async with served(handler) as http:
        answer = await http.post(path, content=body, headers=headers)
    for line, said in zip(answer.text.splitlines(), found[1].strip().splitlines(), strict=True):
        check(line, said)


@pytest.mark.parametrize(
    ("handler", "parameters", "download"),
    [
        ("shot.Shout", {}, Download()),
        ("shout.Shot", {}, Download()),
        ("Shout", {}, Download()),
        ("needy.Needy", {}, Download()),
        ("mistakes.NoPredict", {}, Download()),
        ("mistakes.Async", {}, Download()),
        ("mistakes.Two", {}, Download()),
        ("shout.Shout", {"punctation": "?"}, Download()),
        ("mistakes.Needs", {}, Download()),
        ("mistakes.Needs", {"model_name": "/models/x"}, Download()),
        ("shout.Shout", {}, Download("mistakes.download", {"path": "x"})),
        ("shout.Shout", {}, Download(None, {"hf_path": "x", "s3_path": "s3://a/b"})),
        (None, {}, Download()),
    ],
)
async def test_the_page_tells_the_real_words_of_every_mistake(handler, parameters, download, written):
    with pytest.raises(RegistryServeError) as raised:
        async with served(handler, parameters, download=download):
            pass
    assert f"| `{raised.value}` |" in PAGE


@pytest.mark.parametrize(
    ("handler", "path", "body"),
    [
        ("shout.Shout", "/predict", {"input": "a"}),
        ("shout.Shout", "/predict", {"inputs": []}),
        ("shout.Shout", "/predict", {"inputs": [5]}),
        ("mistakes.Few", "/predict", {"inputs": [1, 2]}),
        ("mistakes.NoList", "/predict", {"inputs": [1]}),
        ("shout.Shout", "/predict_stream", {"inputs": ["a"]}),
    ],
)
async def test_the_page_tells_the_real_words_that_clients_get(handler, path, body, written):
    async with served(handler, name=handler.split(".")[1]) as http:
        answer = await http.post(path, json=body)
    assert f"| {answer.status_code} | `{answer.json()['error']}` |" in PAGE


async def test_a_handlers_own_refusal_is_a_422_in_its_words(written):
    async with served("strict.Strict") as http:
        answer = await http.post("/predict", json={"inputs": ["a", ""]})
    assert (answer.status_code, answer.json()["error"]) == (422, "inputs[1] must not be empty.")


@pytest.mark.cluster
def test_the_pages_deployment_from_python_answers(written, cluster):
    block = next(block for block in BLOCKS if "serve.run(" in block)
    exec(compile(block, "handlers.md", "exec"), {"__name__": "__main__"})
    try:
        answer = requests.post(f"{cluster.address}/predict", data='{"inputs": ["hello"]}', timeout=60)
        assert answer.json() == {"outputs": ["HELLO!"]}
    finally:
        serve.delete("default")
