"""Model handlers behind MosaicML's front: real handlers, a real data plane, over ASGI."""

import asyncio
import datetime as dt
import threading
import time
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypedDict

import httpx
import pytest
from pydantic import BaseModel, Field
from typing_extensions import NotRequired

from registry_serve.downloaders import Download
from registry_serve.errors import ConfigurationError, HandlerInvalid, PredictionTimeout, RateLimited, ReplicaStuck
from registry_serve.handlers import HandlerSpec, ModelHandlerInterface
from registry_serve.planes import handler_plane
from registry_serve.policies import BatchPolicy, Limits
from registry_serve.protocols.gate import ApiKeys
from registry_serve.protocols.mosaicml import handler_app
from registry_serve.rates import RateLimit
from tests.waiting import until


@asynccontextmanager
async def served(
    handler, parameters=None, *, keys=None, rate_limit=None, batching=None, download=None, paths=(), **limits
):
    spec = HandlerSpec(handler, parameters or {}, download or Download(), paths)
    policy = batching or BatchPolicy("on")
    plane = handler_plane(spec, "echo", batching=policy, limits=Limits(**limits), rate_limit=rate_limit)
    await plane.start()
    app = handler_app(plane, "echo", keys)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://serve.test") as http:
            http.plane = plane
            yield http
    finally:
        await plane.aclose()


async def ask(http, body, path="/predict", **options):
    answer = await http.post(path, json=body, **options)
    return answer.json()


class Echo(ModelHandlerInterface):
    def predict(self, model_requests):
        return [[request["input"], request["parameters"]] for request in model_requests]


class HelloWorld(ModelHandlerInterface):
    def predict(self, model_requests):
        return [request["input"] for request in model_requests]


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ({"inputs": ["a", "b"]}, [["a", {}], ["b", {}]]),
        ({"inputs": "a"}, [["a", {}]]),
        ({"inputs": {"image": "x"}}, [[{"image": "x"}, {}]]),
        ({"inputs": [["instruction", "sentence"]]}, [[["instruction", "sentence"], {}]]),
        ({"input_strings": ["a"]}, [["a", {}]]),
        ({"inputs": ["a"], "parameters": {"top_k": 5}}, [["a", {"top_k": 5}]]),
        ({"inputs": ["a"], "parameters": None}, [["a", {}]]),
        ({"inputs": ["a"], "temperature": 0.5}, [["a", {"temperature": 0.5}]]),
        ({"inputs": ["a"], "parameters": {"top_k": 5}, "n": 1}, [["a", {"top_k": 5, "n": 1}]]),
        ({"inputs": [None, 1, 2.5, True]}, [[None, {}], [1, {}], [2.5, {}], [True, {}]]),
    ],
)
async def test_every_form_of_a_request_that_clients_send_is_understood(body, outputs):
    async with served(Echo) as http:
        assert await ask(http, body) == {"outputs": outputs}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 422, "inputs is required"),
        ({"inputs": []}, 422, "inputs must hold at least one input"),
        ({"inputs": None}, 422, "inputs must be a list of inputs, or one input"),
        (["a"], 422, 'The body must be an object {"inputs": [...]}'),
        ({"inputs": ["a"], "parameters": [1]}, 422, "parameters must be an object"),
        ({"inputs": ["a"], "input_strings": ["b"]}, 422, "input_strings is another name of 'inputs': send one of them"),
        ({"inputs": ["a"], "parameters": {"n": 1}, "n": 2}, 422, "n is given twice, also in 'parameters'"),
    ],
)
async def test_what_is_no_request_is_refused_with_a_reason(body, status, told):
    async with served(Echo) as http:
        answer = await http.post("/predict", json=body)
        assert answer.status_code == status
        assert answer.json()["error"] == f"{told}."
        assert http.plane.status()["calls"] == 0


async def test_the_content_type_does_not_matter_and_keys_come_raw():
    async with served(Echo, keys=ApiKeys(["secret"])) as http:
        form = {"content-type": "application/x-www-form-urlencoded"}
        body = '{"inputs": ["a"]}'
        refused = await http.post("/predict", content=body, headers=form)
        assert refused.status_code == 401
        for authorization in ("secret", "Bearer secret"):
            answer = await http.post("/predict", content=body, headers={**form, "authorization": authorization})
            assert answer.json() == {"outputs": [["a", {}]]}
        assert (await http.get("/ping")).status_code == 200


async def test_bytes_are_text_and_nan_is_null():
    class Odd:
        def predict(self, model_requests):
            return [b"aGVsbG8=", float("nan"), {"b": b"\xc3\xa4"}]

    async with served(Odd) as http:
        assert await ask(http, {"inputs": [1, 2, 3]}) == {"outputs": ["aGVsbG8=", None, {"b": "ä"}]}


async def test_the_older_form_of_a_handler_gets_the_body_as_keywords():
    class Diffusion:
        def predict(self, **inputs):
            return [inputs["prompt"].encode(), str(sorted(inputs)).encode()]

    async with served(Diffusion) as http:
        refused = await http.post("/predict", json={"self": 1})
        assert (refused.status_code, refused.json()["errors"][0]["location"]) == (422, ["self"])
        assert await ask(http, {"prompt": "a cat", "seed": 1}) == {"outputs": ["a cat", "['prompt', 'seed']"]}


async def test_a_decorated_predict_is_called_like_any_other():
    def decorated(function):
        return lambda *args, **kwargs: function(*args, **kwargs)

    class Decorated:
        @decorated
        def predict(self, model_requests):
            return [request["input"] for request in model_requests]

    async with served(Decorated) as http:
        assert await ask(http, {"inputs": ["a"]}) == {"outputs": ["a"]}


# --- batching --------------------------------------------------------------------------------------------------------


class InPlace:
    """Changes what it is given, and fails a batch with a bad input in it."""

    calls = 0

    def predict(self, model_requests):
        InPlace.calls += 1
        time.sleep(1 if model_requests[0]["input"]["text"] == "first" else 0)
        for request in model_requests:
            request["input"]["text"] = f"query: {request['input']['text']}"
            request["parameters"]["stop"].append(request["input"]["text"])
        if any("bad" in request["input"]["text"] for request in model_requests):
            raise ValueError("no")
        return [[request["input"]["text"], len(request["parameters"]["stop"])] for request in model_requests]


async def test_what_a_handler_changes_in_place_reaches_nobody_else():
    def body(text):
        return {"inputs": [{"text": text}], "parameters": {"stop": []}}

    async with served(InPlace) as http:
        before = InPlace.calls
        first = asyncio.create_task(ask(http, body("first")))
        await until(lambda: InPlace.calls > before)
        good, bad, fine = await asyncio.gather(*(http.post("/predict", json=body(t)) for t in ("good", "bad", "fine")))
        await first
    assert good.json() == {"outputs": [["query: good", 1]]}
    assert fine.json() == {"outputs": [["query: fine", 1]]}
    assert bad.status_code == 500


class Slow:
    """Remembers with what it was called; the first call takes long enough for others to gather."""

    def __init__(self):
        self.calls = []
        Slow.last = self

    def predict(self, model_requests):
        self.calls.append([(each["input"], each["parameters"].get("t")) for each in model_requests])
        time.sleep(1 if len(self.calls) == 1 else 0)
        if any(each["input"] == "bad" for each in model_requests):
            raise ValueError("no")
        return [f"{each['input']} at {each['parameters'].get('t')}" for each in model_requests]


async def test_callers_with_different_parameters_each_get_their_own_and_equal_ones_share_a_call():
    async with served(Slow) as http:
        first = asyncio.create_task(ask(http, {"inputs": ["first"]}))
        await until(lambda: Slow.last.calls)
        bodies = [{"inputs": [f"{n}"], "parameters": {"t": n % 2}} for n in range(8)]
        answers = await asyncio.gather(*(ask(http, body) for body in bodies))
        await first
    assert answers == [{"outputs": [f"{n} at {n % 2}"]} for n in range(8)]
    assert len(Slow.last.calls) == 3
    assert all(len({t for _, t in call}) == 1 for call in Slow.last.calls)


async def test_a_handler_that_raises_for_one_caller_fails_that_one_alone():
    async with served(Slow) as http:
        first = asyncio.create_task(ask(http, {"inputs": ["first"]}))
        await until(lambda: Slow.last.calls)
        answers = await asyncio.gather(*(http.post("/predict", json={"inputs": [each]}) for each in ("a", "bad", "b")))
        await first
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json()["code"] == "prediction_failed"
    assert "no" not in answers[1].json()["detail"].split()


async def test_a_handlers_answer_must_have_one_output_for_each_input():
    class Forgetful:
        def predict(self, model_requests):
            return ["one"]

    async with served(Forgetful) as http:
        answer = await http.post("/predict", json={"inputs": ["a", "b"]})
        assert answer.status_code == 500
        assert "answered with 1 outputs for 2 inputs" in answer.json()["detail"]


async def test_bodies_that_are_too_large_together_go_one_after_the_other():
    async with served(Slow, batching=BatchPolicy("on", max_batch_bytes=100)) as http:
        first = asyncio.create_task(ask(http, {"inputs": ["first"]}))
        await until(lambda: Slow.last.calls)
        await asyncio.gather(*(ask(http, {"inputs": ["x" * 60]}) for _ in range(3)))
        await first
    assert [len(call) for call in Slow.last.calls] == [1, 1, 1, 1]


async def test_a_handler_lives_in_one_thread():
    class Threads:
        def __init__(self):
            self.built = threading.get_ident()

        def predict(self, model_requests):
            return [threading.get_ident() == self.built] * len(model_requests)

        def predict_stream(self, input, parameters):
            yield threading.get_ident() == self.built

    async with served(Threads) as http:
        assert await ask(http, {"inputs": [1, 2]}) == {"outputs": [True, True]}
        assert (await http.post("/predict_stream", json={"inputs": 1})).text == "true\n"


async def test_a_rate_limit_is_told_in_the_words_that_clients_look_for():
    async with served(Echo, rate_limit=2) as http:
        answers = [await http.post("/predict", json={"inputs": ["a"]}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["error"] == "Rate limit exceeded"
        assert answers[2].headers["retry-after"] == "1"
        assert http.plane.status()["errors"] == {"rate_limit_exceeded": 1}
        assert (await http.get("/ping")).status_code == 200


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_makes_no_sense_is_refused(rate):
    with pytest.raises(ConfigurationError, match="rate_limit must be a number greater than 0"):
        RateLimit(rate)


def test_a_rate_limit_fills_up_again():
    now = 0.0
    limit = RateLimit(0.5, clock=lambda: now)
    limit.take()
    now = 1.9
    with pytest.raises(RateLimited, match=r"takes 0\.5 requests per second") as raised:
        limit.take()
    assert raised.value.retry_after == 1
    now = 2.1
    limit.take()


# --- streaming -------------------------------------------------------------------------------------------------------


class Counter:
    stopped = threading.Event()

    def predict(self, model_requests):
        return [each["input"] for each in model_requests]

    def predict_stream(self, **request):
        try:
            for number in range(request["input"]):
                if number == request["parameters"].get("fail_at"):
                    raise ValueError("no")
                yield f"piece {number}"
                time.sleep(request["parameters"].get("pause_s", 0))
        finally:
            Counter.stopped.set()


async def test_a_stream_is_one_json_value_per_line():
    async with served(Counter) as http:
        answer = await http.post("/predict_stream", json={"inputs": [3]})
        assert answer.headers["content-type"] == "application/x-ndjson; charset=utf-8"
        assert answer.text.splitlines() == ['"piece 0"', '"piece 1"', '"piece 2"']
        assert (await http.post("/predict_stream", json={"inputs": [0]})).text == ""


async def test_a_stream_that_fails_says_so():
    async with served(Counter) as http:
        before = await http.post("/predict_stream", json={"inputs": 3, "fail_at": 0})
        assert (before.status_code, before.json()["code"]) == (500, "prediction_failed")
        later = (await http.post("/predict_stream", json={"inputs": 3, "fail_at": 1})).text.splitlines()
        assert later[0] == '"piece 0"'
        assert '"code":"prediction_failed"' in later[1]
        several = await http.post("/predict_stream", json={"inputs": [1, 2]})
        assert several.json()["error"] == "inputs must be one input, to be streamed."


async def test_a_handler_without_a_stream_says_that_it_has_none():
    async with served(Echo) as http:
        answer = await http.post("/predict_stream", json={"inputs": ["a"]})
        assert (answer.status_code, answer.json()["code"]) == (501, "streaming_unsupported")


async def test_a_client_that_leaves_stops_the_stream_and_frees_the_handler():
    Counter.stopped.clear()
    async with served(Counter) as http:
        pieces = http.plane.generate(None, b'{"inputs": 1000000, "pause_s": 0.01}')
        assert (await anext(pieces)).body == b'"piece 0"'
        await pieces.aclose()
        assert await ask(http, {"inputs": ["next"]}) == {"outputs": ["next"]}
        assert Counter.stopped.is_set()
        assert http.plane.status()["pending_requests"] == 0


async def test_a_piece_that_takes_too_long_ends_the_stream():
    async with served(Counter, request_timeout_s=0.2) as http:
        body = {"inputs": 3, "pause_s": 0.5}
        lines = (await http.post("/predict_stream", json=body)).text.splitlines()
        assert lines[0] == '"piece 0"'
        assert '"code":"prediction_timeout"' in lines[1]


class Fast:
    made = 0

    def predict(self, model_requests):
        return [Fast.made for _ in model_requests]

    def predict_stream(self, input, parameters):
        for Fast.made in range(input):
            yield Fast.made


async def test_a_model_waits_for_a_client_that_reads_slowly_and_not_for_ever():
    Fast.made = 0
    async with served(Fast, request_timeout_s=1) as http:
        pieces = http.plane.generate(None, b'{"inputs": 100000}')
        await anext(pieces)
        await until(lambda: Fast.made > 200)
        await asyncio.sleep(0.3)
        assert Fast.made < 400
        await asyncio.sleep(1)  # longer than the model waits for a reader
        with pytest.raises(PredictionTimeout):
            async for _ in pieces:
                pass
        assert (await ask(http, {"inputs": [1]}))["outputs"][0] < 400


def stuck(plane):
    try:
        plane.check_health()
    except ReplicaStuck:
        return True
    return False


class Hanging:
    goes_on = threading.Event()

    def predict(self, model_requests):
        Hanging.goes_on.wait(20)
        return [0 for _ in model_requests]

    def predict_stream(self, input, parameters):
        for number in range(8):
            yield number
            time.sleep(0.2)


async def test_a_stream_that_goes_on_is_not_stuck_and_a_call_that_does_not_is():
    Hanging.goes_on.clear()
    async with served(Hanging, stuck_after_s=0.8, request_timeout_s=0.8) as http:
        pieces = http.plane.generate(None, b'{"inputs": 1}')
        await anext(pieces)
        await asyncio.sleep(1.5)  # nobody reads, the model goes on
        http.plane.check_health()
        await pieces.aclose()
        hanging = asyncio.create_task(http.post("/predict", json={"inputs": [1]}))
        try:
            await until(lambda: stuck(http.plane))
        finally:
            Hanging.goes_on.set()
        await hanging


# --- annotations -----------------------------------------------------------------------------------------------------


class Settings(TypedDict, total=False):
    top_k: NotRequired[int]


class Typed(TypedDict):
    input: str
    parameters: Settings


class Typist:
    def predict(self, model_requests: list[Typed]) -> list[float]:
        return [len(request["input"]) / request["parameters"].get("top_k", 1) for request in model_requests]


async def test_what_a_handler_annotates_is_checked_and_documented():
    async with served(Typist) as http:
        assert await ask(http, {"inputs": ["abcd"], "top_k": 2}) == {"outputs": [2.0]}
        wrong = (await http.post("/predict", json={"inputs": ["a", 5], "parameters": {"top_k": "2"}})).json()
        assert (wrong["status"], wrong["code"]) == (422, "invalid_request")
        assert wrong["detail"] == "inputs[1] must be a valid string (and 1 more)."
        unknown = await http.post("/predict", json={"inputs": ["a"], "topk": 2})
        assert unknown.json()["detail"] == "parameters.topk is unknown."
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
        assert schemas["Inputs"]["properties"]["inputs"]["anyOf"][1] == {"type": "string"}
        assert schemas["Inputs"]["properties"]["parameters"]["properties"]["top_k"]["type"] == "integer"
        assert schemas["Outputs"]["properties"]["outputs"]["items"] == {"type": "number"}


class Circle(TypedDict):
    kind: Literal["circle"]
    radius: float


class Square(TypedDict):
    kind: Literal["square"]
    side: float


class Outputs(BaseModel):
    area: float


class OfShapes(TypedDict):
    input: list[Annotated[Circle | Square, Field(discriminator="kind")]]
    parameters: dict[str, Any]


class Areas:
    def predict(self, model_requests: list[OfShapes]) -> list[Outputs]:
        return [Outputs(area=sum(each["side"] ** 2 for each in request["input"])) for request in model_requests]


async def test_an_error_about_a_typed_input_repeats_nothing_of_it():
    async with served(Areas) as http:
        assert await ask(http, {"inputs": [[{"kind": "square", "side": 2.0}]]}) == {"outputs": [{"area": 4.0}]}
        wrong = (await http.post("/predict", json={"inputs": [[{"kind": "SECRET"}]]})).json()
        assert wrong["detail"] == "inputs[0][0] is of none of the kinds that are known."
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
        assert set(schemas["Outputs"]["properties"]) == {"outputs"}
        assert set(schemas["Outputs"]["properties"]["outputs"]["items"]["properties"]) == {"area"}


class OfNumbers(TypedDict):
    input: list[float]
    parameters: dict[str, Any]


async def test_millions_of_wrong_values_cost_no_more_than_one():
    class Numbers:
        def predict(self, model_requests: list[OfNumbers]) -> list[int]:
            return [len(request["input"]) for request in model_requests]

    async with served(Numbers) as http:
        answers = await asyncio.gather(
            http.post("/predict", content=b'{"inputs": [[%b]]}' % b",".join([b'"x"'] * 1_000_000)),
            http.post("/predict", content=b'{"inputs": [%b]}' % b",".join([b'"x"'] * 300_000)),
        )
        assert [answer.status_code for answer in answers] == [422, 422]
        assert [len(answer.json()["errors"]) for answer in answers] == [1, 20]


async def test_annotations_that_make_no_sense_say_nothing():
    class Odd:
        def predict(self, model_requests: "list of dicts") -> "list[np.ndarrray]":  # noqa: F722, F821
            return [1 for _ in model_requests]

    async with served(Odd) as http:
        assert await ask(http, {"inputs": ["a"]}) == {"outputs": [1]}


async def test_equal_parameters_share_a_call_whatever_they_are_made_into():
    class Dated(TypedDict):
        day: dt.date

    class OfDays(TypedDict):
        input: str
        parameters: Dated

    class Days:
        calls = 0

        def predict(self, model_requests: list[OfDays]) -> list[str]:
            Days.calls += 1
            time.sleep(1 if Days.calls == 1 else 0)
            return [f"{request['parameters']['day']:%d}" for request in model_requests]

    Days.predict.__annotations__["model_requests"] = list[OfDays]
    async with served(Days) as http:
        body = {"inputs": ["a"], "day": "2026-11-21"}
        first = asyncio.create_task(ask(http, body))
        await until(lambda: Days.calls)
        answers = await asyncio.gather(*(ask(http, body) for _ in range(5)))
        await first
    assert answers == [{"outputs": ["21"]}] * 5
    assert Days.calls == 2


async def test_dicts_of_anything_say_nothing():
    class Plain:
        def predict(self, model_requests: list[dict[str, Any]]) -> list[Any]:
            return [1 for _ in model_requests]

    async with served(Plain) as http:
        assert await ask(http, {"inputs": [{"a": 1}], "anything": "goes"}) == {"outputs": [1]}


# --- what is no handler ----------------------------------------------------------------------------------------------


class NoPredict:
    pass


class Coroutine:
    async def predict(self, model_requests):
        return []


class AsyncStream(HelloWorld):
    async def predict_stream(self, **request):
        yield 1


class Misspelt(ModelHandlerInterface):
    def predcit(self, model_requests):
        return []


class TwoArguments:
    def predict(self, model_requests, more):
        return []


class Nothing:
    def predict(self):
        return []


class Broken:
    def __init__(self, model_name):
        raise OSError("no such model")

    def predict(self, model_requests):
        return []


HERE = __name__


@pytest.mark.parametrize(
    ("handler", "parameters", "told"),
    [
        (f"{HERE}.NoPredict", {}, "the class NoPredict has no method predict(self, model_requests)"),
        (f"{HERE}.Coroutine", {}, "Coroutine.predict is called in a thread: drop 'async'"),
        (f"{HERE}.AsyncStream", {}, "AsyncStream.predict_stream is called in a thread: drop 'async'"),
        (f"{HERE}.Misspelt", {}, "the class Misspelt does not define predict(self, model_requests)"),
        (f"{HERE}.TwoArguments", {}, "TwoArguments.predict takes more than the list of model_requests"),
        (f"{HERE}.Nothing", {}, "Nothing.predict takes no argument for the list of model_requests"),
        (f"{HERE}.Missing", {}, f"the module '{HERE}' has no class 'Missing'"),
        (f"{HERE}.HERE", {}, "it is not a class"),
        ("no_such_package.handler.Class", {}, "there is no module 'no_such_package' on the replica's path"),
        ("nobody", {}, "write its dotted path, such as package.module.Class, or one of the names: huggingface"),
        (f"{HERE}.Counter", {"print_string": "x", "more": 1}, "Counter takes no parameter more, print_string"),
        (f"{HERE}.Broken", {}, "Broken needs model_name in model_parameters"),
        (f"{HERE}.Broken", {"model_name": "m"}, "building it raised OSError: no such model"),
    ],
)
async def test_what_is_no_handler_is_refused_with_a_reason(handler, parameters, told):
    with pytest.raises(HandlerInvalid) as raised:
        async with served(handler, parameters):
            pass
    assert told in str(raised.value)
    assert handler in str(raised.value)


async def test_parameters_that_the_interface_swallows_are_no_mistake():
    async with served(HelloWorld, {"print_string": "hello world!"}) as http:
        assert await ask(http, {"inputs": ["prompt 1", "prompt 2"]}) == {"outputs": ["prompt 1", "prompt 2"]}


async def test_a_handler_is_found_in_a_folder_with_dashes(tmp_path):
    folder = tmp_path / "inference-deployments" / "mpt"
    folder.mkdir(parents=True)
    (folder / "mpt_handler.py").write_text(
        "class MPT:\n    def predict(self, inputs):\n        return [x['input'] * 2 for x in inputs]\n"
    )
    async with served("inference-deployments.mpt.mpt_handler.MPT", paths=(str(tmp_path),)) as http:
        assert await ask(http, {"inputs": [2]}) == {"outputs": [4]}


async def test_a_module_that_needs_a_package_names_the_package(tmp_path):
    (tmp_path / "needy_handler.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(HandlerInvalid, match="its module needs 'a_package_that_nobody_has', which is not installed"):
        async with served("needy_handler.Needy", paths=(str(tmp_path),)):
            pass


async def test_a_handler_is_closed_once():
    class Closing:
        closed = 0

        def predict(self, model_requests):
            return [0 for _ in model_requests]

        def close(self):
            Closing.closed += 1

    async with served(Closing):
        pass
    assert Closing.closed == 1
