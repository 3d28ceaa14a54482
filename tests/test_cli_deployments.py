"""Deploying, asking and ending deployments from the command line."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
import uvicorn
import yaml
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from typing_extensions import NotRequired, TypedDict

from registry_serve import cli, rollout
from registry_serve.cli.example import example_request
from registry_serve.handlers import HandlerSchema
from registry_serve.protocols.handler_openapi import schemas
from tests.mlflow_server import free_port

COMMAND = Path(sys.executable).parent / "registry-serve"


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs a command in this process, as the console script does; gives exit code, output and errors."""

    def run(*arguments, given=None, typed=None):
        monkeypatch.setattr(sys, "argv", ["registry-serve", *map(str, arguments)])
        if given is not None:
            reader, writer = os.pipe()
            os.write(writer, given.encode())
            os.close(writer)
            monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
        if typed is not None:
            keyboard, terminal = pty.openpty()
            os.write(keyboard, typed.encode())
            monkeypatch.setattr(sys, "stdin", os.fdopen(terminal))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def as_a_user(*arguments, **options):
    """Runs a command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **options.pop("env", {})}
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, **options
    )


@pytest.fixture(scope="module", autouse=True)
def _state(tmp_path_factory):
    """What these tests deploy is written down in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGISTRY_SERVE_STATE", str(tmp_path_factory.mktemp("state")))
        yield


# --- asking by URL ---------------------------------------------------------------------------------------------------


class Echo:
    """A real server whose answers show what it was sent."""

    def __init__(self):
        self.next_piece = threading.Event()
        routes = [
            Route("/up/ping", lambda _: PlainTextResponse("pong")),
            Route("/loading/ping", lambda _: JSONResponse({"detail": "It is loading."}, 503)),
            Route("/silent/ping", self.silent),
            Route("/up/predict", self.predict, methods=["POST"]),
            Route("/up/serve", self.predict, methods=["POST"]),
            Route("/up/versions/3/serve", self.predict, methods=["POST"]),
            Route("/up/predict_stream", self.stream, methods=["POST"]),
            Route("/moved/predict", lambda _: RedirectResponse("/up/predict"), methods=["POST"]),
            Route("/prose/predict", lambda _: PlainTextResponse("It works!"), methods=["POST"]),
            Route("/refusing/{status:int}/{kind}/predict", self.refuse, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def predict(self, request):
        told = {
            "path": request.url.path,
            "body": (await request.body()).decode(),
            "authorization": request.headers.get("authorization"),
            "version": request.headers.get("serve-multiplexed-model-id"),
            "type": request.headers.get("content-type"),
        }
        return JSONResponse({"outputs": [told], "strange": ":heart: [bold]ü"})

    def silent(self, request):
        time.sleep(1)
        return PlainTextResponse("late")

    def stream(self, request):
        def pieces():
            for piece in ("one", "two"):
                yield json.dumps(piece) + "\n\n"
                self.next_piece.wait(10)

        return StreamingResponse(pieces())

    def refuse(self, request):
        bodies = {
            "problem": b'{"title": "No", "detail": "Row 1\\nis odd.", "error": "other"}',
            "mosaicml": b'{"error": "Rate limit exceeded"}',
            "mlflow": b'{"message": "Bad things."}',
            "openai": b'{"error": {"message": "No such model."}}',
            "text": b"Internal\nServer Error",
            "html": b"<html>much</html>",
            "nothing": b"",
        }
        kind = request.path_params["kind"]
        media = "text/html" if kind == "html" else "application/octet-stream"
        return Response(bodies[kind], request.path_params["status"], media_type=media)


@contextmanager
def served(app):
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def echo():
    made = Echo()
    with served(made.app) as made.url:
        yield made


def outputs(text):
    return json.loads(text)["outputs"][0]


def test_ping_tells_the_status(command, echo):
    assert command("ping", f"{echo.url}/up") == (0, f"{echo.url}/up is up (HTTP 200).\n", "")
    code, told, _ = command("ping", f"{echo.url}/up/predict", "--json")
    assert (code, json.loads(told)) == (0, {"status": 200})


def test_a_ping_of_what_is_down_is_exit_code_1(command):
    url = f"http://127.0.0.1:{free_port()}/gone"
    code, told, error = command("ping", url)
    assert (code, told) == (1, "")
    assert error.startswith(f"error: {url}/ping does not answer: ")
    assert "registry-serve get deployments" in error
    assert error.count("\n") == 1


def test_a_ping_of_what_is_not_ready_is_exit_code_1(command, echo):
    assert command("ping", f"{echo.url}/loading") == (1, "", "error: It is loading. (HTTP 503)\n")


def test_a_ping_gives_up_in_time(command, echo):
    started = time.monotonic()
    code, _, error = command("ping", f"{echo.url}/silent", "--timeout", "0.2")
    assert time.monotonic() - started < 0.9
    assert (code, "did not answer within 0.2 s" in error, "--timeout" in error) == (1, True, True)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ('{"inputs": ["a",   1.10]}', '{"inputs": ["a",   1.10]}'),
        ('["a"]', '["a"]'),
        ('"text"', '"text"'),
        ("inputs: [a, 2024-01-31]", '{"inputs": ["a", "2024-01-31"]}'),
        ("inputs:\n- a\nparameters:\n  temperature: 0.5\n", '{"inputs": ["a"], "parameters": {"temperature": 0.5}}'),
    ],
)
def test_the_input_is_json_as_it_is_or_yaml(command, echo, tmp_path, written, sent):
    for arguments, given in [
        (["--input", written], None),
        (["-i", "-"], written),
        (["-i", file_of(tmp_path, written)], None),
    ]:
        code, told, _ = command("predict", f"{echo.url}/up", *arguments, given=given)
        assert (code, outputs(told)["body"]) == (0, sent)
    assert outputs(told)["type"] == "application/json"


def file_of(folder, text):
    (folder / "input").write_text(text)
    return f"@{folder / 'input'}"


@pytest.mark.parametrize(
    "written", ["", "hello", "{inputs: [a", "{'a': .nan}", "- !!python/name:os.system x", "{[1]: 2}"]
)
def test_input_that_is_neither_is_one_line_that_shows_how(command, echo, written):
    code, told, error = command("predict", f"{echo.url}/up", "--input", written)
    assert (code, told) == (1, "")
    assert error.startswith('error: --input is neither a JSON nor a YAML object. Write it like \'{"inputs"')
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(command, echo, tmp_path):
    code, _, error = command("predict", f"{echo.url}/up", "-i", f"@{tmp_path}/none")
    assert (code, error) == (1, f"error: --input @{tmp_path}/none cannot be read: No such file or directory.\n")


@pytest.mark.parametrize(
    ("below", "asked"),
    [
        ("/up", "/up/predict"),
        ("/up/", "/up/predict"),
        ("/up/predict", "/up/predict"),
        ("/up/serve", "/up/serve"),
        ("/up/versions/3/serve", "/up/versions/3/serve"),
    ],
)
def test_predictions_are_below_the_url_unless_it_names_their_path(command, echo, below, asked):
    for url in (f"{echo.url}{below}", f"{echo.url}{below}".removeprefix("http://")):
        code, told, _ = command("predict", url, "-i", "[1]")
        assert (code, outputs(told)["path"]) == (0, asked)


def test_the_version_and_the_first_key_are_sent_along(command, echo, tmp_path):
    (tmp_path / "keys").write_text("# ours\n\nsecret-1\nsecret-2\n")
    code, told, _ = command(
        "predict", f"{echo.url}/up", "-i", "[1]", "--version", "@champion", "--api-key-file", tmp_path / "keys"
    )
    assert (code, outputs(told)["version"], outputs(told)["authorization"]) == (0, "@champion", "Bearer secret-1")


def test_what_names_no_version_is_refused_before_anything_is_sent(command, echo):
    code, _, error = command("predict", f"{echo.url}/up", "-i", "[1]", "--version", "3\nx: y")
    assert (code, "names no version" in error, error.count("\n")) == (1, True, 1)


def test_an_answer_is_one_line_for_programs_and_as_it_came_with_json(command, echo):
    compact = command("predict", f"{echo.url}/up", "-i", "[1]")[1]
    assert compact.count("\n") == 1
    assert '"strange":":heart: [bold]ü"' in compact
    assert command("predict", f"{echo.url}/up", "-i", "[1]", "--json")[1] == compact


def test_an_answer_is_pretty_on_a_terminal(command, echo, monkeypatch):
    monkeypatch.setattr(cli.screen.console, "_force_terminal", True)
    monkeypatch.setattr(cli.screen.console, "_color_system", None)
    told = command("predict", f"{echo.url}/up", "-i", "[1]")[1]
    assert told.startswith('{\n  "outputs": [\n    {\n')
    assert '  "strange": ":heart: [bold]ü"\n}\n' in told


@pytest.mark.parametrize(
    ("kind", "status", "told"),
    [
        ("problem", 422, "Row 1 is odd. (HTTP 422)"),
        ("mosaicml", 429, "Rate limit exceeded (HTTP 429)"),
        ("mlflow", 400, "Bad things. (HTTP 400)"),
        ("openai", 404, "No such model. (HTTP 404)"),
        ("text", 500, "Internal Server Error (HTTP 500)"),
        ("html", 502, "{url} answered 502 Bad Gateway."),
        ("nothing", 503, "{url} answered 503 Service Unavailable."),
        ("mosaicml", 401, "Rate limit exceeded (HTTP 401) Send a key with --api-key-file FILE."),
    ],
)
def test_a_refusal_is_its_own_words_in_one_line(command, echo, kind, status, told):
    url = f"{echo.url}/refusing/{status}/{kind}/predict"
    assert command("predict", url, "-i", "[1]") == (1, "", f"error: {told.format(url=url)}\n")


def test_a_key_follows_no_redirect(command, echo, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    code, told, error = command("predict", f"{echo.url}/moved", "-i", "[1]", "--api-key-file", tmp_path / "keys")
    assert (code, told, "answered 307" in error) == (1, "", True)


def test_an_answer_that_is_no_json_is_said_to_be_none(command, echo):
    code, told, error = command("predict", f"{echo.url}/prose", "-i", "[1]")
    assert (code, told, "no JSON" in error) == (1, "", True)
    assert command("predict", f"{echo.url}/prose", "-i", "[1]", "--json")[:2] == (0, "It works!\n")


def test_a_streamed_answer_is_printed_while_it_comes(echo):
    asked = [COMMAND, "predict", f"{echo.url}/up", "-i", "inputs: [a]", "--stream"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as printing:
        assert printing.stdout.readline() == '"one"\n'
        echo.next_piece.set()
        assert printing.stdout.read() == '"two"\n'
    assert printing.returncode == 0


@pytest.mark.parametrize("url", ["ftp://here/x", "http://", "http://[::1/x", "http://here:port/"])
def test_an_address_that_is_none_is_one_line(command, url):
    code, _, error = command("predict", url, "-i", "[1]")
    assert (code, error.startswith(f"error: {url!r} is no address of an endpoint."), error.count("\n")) == (1, True, 1)


# --- a request to try ------------------------------------------------------------------------------------------------


class Prompt(BaseModel):
    text: str
    language: Literal["de", "fr"]
    seed: int | None = None


class Settings(TypedDict):
    temperature: float
    stop: NotRequired[list[str]]


class Asked(TypedDict):
    input: Prompt
    parameters: Settings


class Typed:
    def predict(self, model_requests: list[Asked]) -> list[str]:
        """Answers."""


class Pairs:
    def predict(self, model_requests: list[TypedDict("Pair", {"input": tuple[str, float]})]):
        """Answers."""


class Free:
    def predict(self, model_requests):
        """Answers."""


class Older:
    def predict(self, **inputs):
        """Answers."""


def described(handler):
    schema = HandlerSchema(handler, "x")
    return schema, {"paths": {"/predict": {}}, "components": {"schemas": schemas(schema)}}


@pytest.mark.parametrize("handler", [Typed, Pairs, Free])
def test_the_request_to_try_is_one_that_the_handler_takes(handler):
    schema, document = described(handler)
    path, body = example_request(document)
    assert path == "/predict"
    schema.parse(json.dumps(body).encode())


def test_the_request_to_try_says_no_more_than_it_must():
    body = {"inputs": [{"text": "some text", "language": "de"}], "parameters": {"temperature": 0.5}}
    assert example_request(described(Typed)[1]) == ("/predict", body)


def test_what_a_handler_of_the_older_form_takes_is_not_made_up():
    assert example_request(described(Older)[1]) is None


# --- deployments -----------------------------------------------------------------------------------------------------

HANDLERS = """
import logging

class Greeter:
    def __init__(self, greeting):
        self.greeting = greeting

    def predict(self, model_requests):
        logging.getLogger("ray.serve").warning("greeting %d", len(model_requests))
        return [f"{self.greeting} {request['input']}" for request in model_requests]

    def predict_stream(self, input, parameters):
        yield self.greeting
        yield input

class Silent:
    pass
"""


def file_in(folder, name="greeter", **other):
    """Writes a deployment file, and the handlers that it names."""
    (folder / "greeters.py").write_text(HANDLERS)
    content = {
        "name": name,
        "image": "mosaicml/inference:latest",
        "compute": {"gpus": 0, "cpus": 0.1},
        "env_variables": [{"key": "API_TOKEN", "value": "swordfish"}],
        "integrations": [{"integration_type": "git_repo", "git_repo": "."}],
        "model": {"model_handler": "greeters.Greeter", "model_parameters": {"greeting": "Hello"}},
        **other,
    }
    (folder / "deployment.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "deployment.yaml"


@pytest.fixture(scope="module")
def greeter(cluster, tmp_path_factory):
    """A deployment that the tests share."""
    rollout.deploy(file_in(tmp_path_factory.mktemp("greeter")))
    yield f"{cluster.address}/greeter"
    for each in rollout.deployments():
        rollout.delete(each.name)


@pytest.mark.cluster
def test_a_file_is_deployed_and_the_line_to_try_works(command, cluster, tmp_path):
    code, told, error = command("deploy", "-f", file_in(tmp_path, "tried"))
    assert (code, error) == (0, "")
    assert f"url: {cluster.address}/tried" in told
    assert "Loading tried ..." in told
    assert "image is not used" in told
    [line] = re.findall(r"^    (curl .*)$", told, re.MULTILINE)
    assert json.loads(subprocess.check_output([*shlex.split(line), "-s"])) == {"outputs": ["Hello some text"]}
    assert command("delete", "deployment", "tried")[0] == 0


@pytest.mark.cluster
def test_a_deployment_that_is_not_waited_for_is_there_at_once(command, cluster, tmp_path):
    code, told, _ = command("deploy", "-f", file_in(tmp_path, "later"), "--no-wait", "--json")
    assert (code, json.loads(told)["name"], json.loads(told)["url"]) == (0, "later", f"{cluster.address}/later")
    assert json.loads(told)["state"] in ("deploying", "running")
    assert command("delete", "deployment", "later", "--json")[:2] == (0, '{\n  "deleted": [\n    "later"\n  ]\n}\n')


@pytest.mark.cluster
def test_keys_are_asked_for_and_known_by_the_deployments_name(command, cluster, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    code, told, _ = command("deploy", "-f", file_in(tmp_path, "locked"), "--api-key-file", tmp_path / "keys")
    assert (code, "secret" in told) == (0, False)
    [line] = re.findall(r"^    (curl .*)$", told, re.MULTILINE)
    answered = subprocess.check_output(["bash", "-c", f"{line} -s"])
    assert json.loads(answered) == {"outputs": ["Hello some text"]}
    assert command("predict", "locked", "-i", "inputs: [Ada]")[0] == 0
    code, _, error = command("predict", f"{cluster.address}/locked", "-i", "inputs: [Ada]")
    assert (code, "--api-key-file" in error) == (1, True)
    command("delete", "deployment", "locked")


@pytest.mark.cluster
def test_a_registered_model_is_deployed_and_asked_for_its_versions(command, cluster, shelf, tmp_path):
    registry = [{"key": "MLFLOW_TRACKING_URI", "value": shelf.uri}]
    file = file_in(
        tmp_path, "shouter", model={"registered_model": "toy", "version": "1"}, env_variables=registry, integrations=[]
    )
    code, told, error = command("deploy", "-f", file)
    assert (code, error) == (0, "")
    assert "serves: models:/toy/1" in told
    [line] = re.findall(r"^    (curl .*)$", told, re.MULTILINE)
    assert "/shouter/serve -d" in line
    assert json.loads(subprocess.check_output([*shlex.split(line), "-s"])) == [{"text": "one:hello"}]
    asked = ("predict", "shouter", "-i", '{"inputs": ["hello"]}')
    assert json.loads(command(*asked, "--version", "2")[1]) == {"outputs": [{"text": "two:hello"}]}
    code, _, error = command(*asked, "--version", "3")
    assert (code, "(HTTP 409)" in error, error.count("\n")) == (1, True, 1)
    told = command("describe", "deployment", "shouter")[1]
    assert re.search(r"^3 +- +\w+ +no: .*'prompt'", told, re.MULTILINE)
    assert command("delete", "deployment", "shouter")[0] == 0


@pytest.mark.cluster
def test_deployments_are_listed(command, greeter):
    code, told, _ = command("get", "deployments")
    heading, row = told.splitlines()
    assert (code, heading.split()) == (0, ["NAME", "STATE", "READY", "SERVES", "URL", "AGE"])
    assert row.split()[:7] == ["greeter", "running", "1", "of", "1", "greeters.Greeter", greeter]
    [listed] = json.loads(command("get", "deployments", "--json")[1])
    assert (listed["name"], listed["state"], listed["replicas_ready"]) == ("greeter", "running", 1)
    assert datetime.fromisoformat(listed["deployed"]).tzinfo


@pytest.mark.cluster
def test_a_description_has_the_file_without_its_secrets_and_what_the_endpoint_tells(command, greeter):
    code, told, _ = command("describe", "deployment", "greeter")
    assert code == 0
    assert f"  url: {greeter}\n" in told
    assert "      greeting: Hello\n" in told
    assert re.search(r"^1 +- +ready +yes$", told, re.MULTILINE)
    described = json.loads(command("describe", "deployment", "greeter", "--json")[1])
    assert described["model"]["versions"][0]["state"] == "ready"
    assert described["file"]["env_variables"][0]["key"] == "API_TOKEN"
    assert "swordfish" not in told + json.dumps(described)


@pytest.mark.cluster
def test_a_deployment_is_asked_by_its_name(command, greeter):
    assert command("ping", "greeter")[:2] == (0, "greeter is up (HTTP 200).\n")
    asked = ("predict", "greeter", "--input", "inputs: [Ada, Bo]")
    assert command(*asked)[:2] == (0, '{"outputs":["Hello Ada","Hello Bo"]}\n')
    assert command("predict", "greeter", "-i", "inputs: [Ada]", "--stream")[:2] == (0, '"Hello"\n"Ada"\n')
    assert command("predict", "greeter", "-i", "{}")[0] == 1


@pytest.mark.cluster
def test_a_deployment_that_is_not_there_is_one_line_with_those_that_are(command, greeter):
    for words in (["ping"], ["predict", "-i", "[1]"], ["describe", "deployment"], ["stop", "deployment"],
                  ["get", "deployment", "logs"], ["update", "deployment"], ["delete", "deployments"]):  # fmt: skip
        code, told, error = command(*words, "nobody")
        assert (code, told) == (1, "")
        assert error == "error: There is no deployment 'nobody'. There are: greeter.\n"


@pytest.mark.cluster
def test_logs_are_printed_and_followed(command, greeter):
    command("predict", "greeter", "-i", "inputs: [1, 2, 3]")
    assert "greeting 3" in command("get", "deployment", "logs", "greeter", "--tail", "1")[1]
    told = command("get", "deployment", "logs", "greeter", "--tail", "1", "--json")[1]
    assert "greeting 3" in json.loads(told)["line"]
    following = [COMMAND, "get", "deployment", "logs", "greeter", "--follow", "--tail", "0"]
    with subprocess.Popen(following, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        read = threading.Thread(target=lambda: lines.append(process.stdout.readline()))
        lines = []
        read.start()
        while not lines:
            command("predict", "greeter", "-i", "inputs: [1, 2, 3, 4]")
            read.join(0.5)
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr.read()) == (130, "")
    assert "greeting 4" in lines[0]


@pytest.mark.cluster
@pytest.mark.slow
def test_replicas_are_added_while_it_answers(command, greeter):
    code, told, _ = command("update", "deployment", "greeter", "--replicas", "2", "--json")
    assert (code, json.loads(told)["replicas"], json.loads(told)["replicas_ready"]) == (0, 2, 2)
    code, told, error = command("update", "deployment", "greeter")
    assert (code, told, "--replicas" in error, error.count("\n")) == (1, "", True, 1)
    assert command("update", "deployment", "greeter", "--replicas", "1")[0] == 0


@pytest.mark.cluster
@pytest.mark.slow
def test_a_stopped_deployment_stays_listed_and_comes_back(command, greeter):
    assert command("stop", "deployment", "greeter")[0] == 0
    assert "stopped" in command("get", "deployments")[1]
    code, _, error = command("ping", "greeter")
    assert (code, error.count("\n")) == (1, 1)
    assert command("describe", "deployment", "greeter")[0] == 0
    assert command("update", "deployment", "greeter")[0] == 0
    assert command("ping", "greeter")[0] == 0


@pytest.mark.cluster
@pytest.mark.slow
def test_several_are_deleted_only_by_who_says_so(command, cluster, tmp_path, monkeypatch):
    for name in ("demo-1", "demo-2"):
        assert command("deploy", "-f", file_in(tmp_path, name), "--no-wait")[0] == 0
    code, _, error = command("delete", "deployment", "demo-*")
    assert (code, error) == (1, "error: Nothing was deleted. Give --yes to delete demo-1, demo-2.\n")
    monkeypatch.setattr(cli.screen.console, "_force_terminal", True)
    assert command("delete", "deployments", "demo-*", typed="n\n")[0] == 1
    assert {"demo-1", "demo-2"} <= {each.name for each in rollout.deployments()}
    assert command("delete", "deployments", "demo-*", typed="y\n")[0] == 0
    assert not {"demo-1", "demo-2"} & {each.name for each in rollout.deployments()}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"replicas": "two"}, "{file}, line 16: replicas must be an integer, not 'two'."),
        ({"model": {"model_handlr": "greeters.Greeter"}}, "model.model_handlr"),
        ({"model": {"model_handler": "greeters.Greeter", "download_parameters": {"hf_path": "a/b", "s3_path": "s3://a/b"}}},
         "s3_path"),
        ({"model": {"model_handler": "nowhere.Greeter"}}, "The model handler 'nowhere.Greeter' cannot be used: "),
        ({"model": {"model_handler": "greeters.Silent"}}, "has no method predict(self, model_requests)"),
    ],
    ids=["wrong-type", "unknown-key", "two-sources", "missing-handler", "no-predict"],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line_and_exit_code_1(command, cluster, tmp_path, change, told):
    file = file_in(tmp_path, "mistaken", **change)
    code, _, error = command("deploy", "-f", file)
    assert code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told.format(file=file) in error
    assert "mistaken" not in {each.name for each in rollout.deployments()}


@pytest.mark.parametrize("change", [{"replicas": "two"}, {"mode": {}, "replicas": 0}])
def test_a_mistake_is_one_line_in_a_process_of_its_own_too(tmp_path, change):
    told = as_a_user("deploy", "-f", file_in(tmp_path, **change))
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"error: {tmp_path}/deployment.yaml, line ")
    assert told.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line_and_exit_code_1(command, tmp_path):
    code, _, error = command("deploy", "-f", tmp_path / "none.yaml")
    assert (code, "none.yaml" in error, error.count("\n")) == (1, True, 1)


def test_others_are_let_in_only_by_who_says_so(command, tmp_path):
    code, _, error = command("deploy", "-f", file_in(tmp_path), "--host", "0.0.0.0")
    assert (code, "--api-key-file" in error, "--no-auth" in error) == (1, True, True)
    assert rollout.deployments() == [] or "greeter" in {each.name for each in rollout.deployments()}


def test_the_schema_is_one_that_files_can_be_checked_with(command, tmp_path):
    code, told, _ = command("schema")
    schema = json.loads(told)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(file_in(tmp_path).read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "replicas": "two"}, schema)
    assert code == command("schema", "-o", tmp_path / "schema.json")[0] == 0
    assert (tmp_path / "schema.json").read_text() == told
    assert command("schema", "-o", tmp_path / "none" / "schema.json")[0] == 1
