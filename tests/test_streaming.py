"""Answers piece by piece of registered models: server-sent events and lines, over ASGI."""

import asyncio
import json

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import load_model
from mlflow.types import ParamSchema, ParamSpec, Schema
from mlflow.types.schema import ColSpec

from registry_serve import log_handler
from registry_serve.protocols.native import native_app
from tests.leaving import Client
from tests.mlflow_server import made_global
from tests.test_native import assert_problem
from tests.toys import Speller

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "prompt")]), params=ParamSchema([ParamSpec("loud", "boolean", False)])
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    note = tmp_path_factory.mktemp("speller") / "ended.txt"
    note.touch()
    return note


@pytest.fixture(scope="module")
def speller(shelf, ended):
    """A registered model whose versions 1 and 2 stream, and whose version 3 has another signature."""
    for _ in range(2):
        shelf.log("speller", Speller(str(ended)), signature=SIGNATURE)
    shelf.log("speller", Speller(str(ended)), signature=ModelSignature(inputs=Schema([ColSpec("string", "other")])))
    shelf.alias("speller", "champion", "2")
    return "speller"


def events(answer):
    """The events of an answer: name and value."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for event in answer.text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.split("\n"))
        found.append((lines.get("event", "message"), json.loads(lines["data"])))
    return found


async def test_each_piece_is_an_event_and_the_last_one_says_that_this_is_all(client, speller):
    async with client(speller) as http:
        answer = await http.post("/serve/stream", json={"prompt": "ab"})
    assert events(answer) == [
        ("message", {"letter": "a", "loud": False}),
        ("message", {"letter": "b", "loud": False}),
        ("done", {}),
    ]
    assert answer.headers["serve-model-version"] == "1"
    assert answer.headers["cache-control"] == "no-cache"


async def test_the_pieces_are_those_that_mlflow_gives_to_python(client, shelf, speller):
    with made_global(shelf.uri):
        model = load_model("models:/speller/1")
        expected = list(model.predict_stream({"prompt": "né"}, params={"loud": True}))
    async with client(speller) as http:
        answer = await http.post("/serve/stream", json={"inputs": {"prompt": "né"}, "params": {"loud": True}})
        lines = await http.post("/predict_stream", json={"inputs": ["né"], "parameters": {"loud": True}})
    assert [value for _, value in events(answer)[:-1]] == expected
    assert [json.loads(line) for line in lines.text.splitlines()] == expected


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/serve/stream", {"serve_multiplexed_model_id": "2"}),
        ("/serve/stream/", {"serve-multiplexed-model-id": "champion"}),
        ("/versions/2/serve/stream", {}),
        ("/versions/@champion/serve/stream", {"serve-multiplexed-model-id": "@champion"}),
    ],
)
async def test_a_version_is_chosen_as_for_a_prediction(client, speller, path, headers):
    async with client(speller) as http:
        answer = await http.post(path, json={"prompt": "a"}, headers=headers)
    assert answer.headers["serve-model-version"] == "2"
    assert len(events(answer)) == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/versions/9/serve/stream", {"prompt": "a"}, 404, "version_not_found"),
        ("/versions/3/serve/stream", {"prompt": "a"}, 409, "signature_conflict"),
        ("/serve/stream", {"prompt": 1}, 422, "invalid_request"),
        ("/serve/stream", [{"prompt": "a"}, {"prompt": "b"}], 422, "invalid_request"),
        ("/serve/stream", {"prompt": "!"}, 500, "prediction_failed"),
    ],
)
async def test_what_fails_before_the_first_piece_has_a_status(client, speller, path, body, status, code):
    async with client(speller) as http:
        assert_problem(await http.post(path, json=body), status, code)


async def test_what_fails_later_is_the_last_event(client, speller):
    async with client(speller) as http:
        answer = await http.post("/serve/stream", json={"prompt": "a!b"})
        lines = await http.post("/predict_stream", json={"inputs": ["a!b"]})
    assert answer.status_code == 200
    (_, first), (name, told) = events(answer)
    assert first["letter"] == "a"
    assert (name, told["code"], told["status"]) == ("error", "prediction_failed", 500)
    assert told["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert json.loads(lines.text.splitlines()[-1])["code"] == "prediction_failed"


async def test_a_model_that_answers_in_one_piece_says_so(client):
    async with client() as http:
        for path, body in (("/serve/stream", {"prompt": "a"}), ("/predict_stream", {"inputs": ["a"]})):
            assert_problem(await http.post(path, json=body), 501, "streaming_unsupported")


async def test_a_client_that_leaves_ends_the_models_stream(plane, speller, ended):
    async with plane(speller) as made:
        app = native_app(made, speller)
        client = Client(app, "/serve/stream", {"prompt": "." * 10_000})
        await client.piece()
        ended.write_text("")
        await client.leave()
        assert made.status()["pending_requests"] == 0
        next_one = Client(app, "/serve", {"prompt": "ab"})  # behind the stream, in the model's only thread
        await asyncio.wait_for(next_one.answering, 5)
        assert next_one.pieces == [b'[["a","b"]]']
        assert ended.read_text() == "ended "
        assert len(client.pieces) < 1000


CHATTER = """
class Chatter:
    def predict(self, model_requests):
        return [request["input"].split() for request in model_requests]

    def predict_stream(self, input, parameters):
        for word in input.split():
            yield word + parameters.get("end", "")
"""


async def test_a_logged_handler_streams_as_it_does_without_the_registry(client, shelf, tmp_path):
    (tmp_path / "streaming_chatter.py").write_text(CHATTER)
    options = {"code_paths": [tmp_path], "input_example": ["a b"], "parameters": {"end": ""}}
    with made_global(shelf.uri), mlflow.start_run(experiment_id=shelf.experiment):
        info = log_handler("streaming_chatter.Chatter", registered_model_name="chatter", **options)
    async with client("chatter", str(info.registered_model_version)) as http:
        answer = await http.post("/serve/stream", json={"inputs": {"input": "one two"}, "params": {"end": "."}})
        lines = await http.post("/predict_stream", json={"inputs": ["one two"], "parameters": {"end": "."}})
    assert events(answer) == [("message", "one."), ("message", "two."), ("done", {})]
    assert lines.text == '"one."\n"two."\n'
