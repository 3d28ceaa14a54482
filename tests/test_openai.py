"""OpenAI's format with its own client, in this process: a real engine and a real tiny model."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
import pytest_asyncio

from registry_serve.generation import Chunk, EngineFailed
from registry_serve.handlers import HandlerSpec
from registry_serve.models.handler import load_handler
from registry_serve.planes import handler_plane
from registry_serve.policies import BatchPolicy, Limits
from registry_serve.protocols.gate import ApiKeys
from registry_serve.protocols.mosaicml import handler_app
from registry_serve.protocols.native import native_app
from tests import language_models
from tests.generated import greedy, loaded
from tests.language_models import CONTEXT, one_thread  # noqa: F401
from tests.leaving import Client
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

RIVER = [{"role": "user", "content": "The river"}]
GREEDY = {"model": "llama", "temperature": 0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return language_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return language_models.gpt2(tmp_path_factory.mktemp("gpt2"))


def spec(model, **settings):
    """A handler for a model in a folder, or one that a test defines."""
    if isinstance(model, type):
        return HandlerSpec(model, settings)
    parameters = {"task": "text-generation", "model_name_or_path": model, "model_dtype": "fp32", **settings}
    return HandlerSpec("huggingface", parameters)


def talking_to(app, key="none"):
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False))
    made = openai.AsyncOpenAI(api_key=key, base_url="http://serve.test/v1", http_client=http, max_retries=0)
    made.http = http
    return made


@asynccontextmanager
async def served(model, *, keys=None, rate_limit=None, settings=None, **limits):
    """OpenAI's client for a handler's deployment in this process."""
    policy, limits = BatchPolicy("on"), Limits(**limits)
    plane = handler_plane(
        spec(model, **(settings or {})), "llama", batching=policy, limits=limits, rate_limit=rate_limit
    )
    await plane.start()
    app = handler_app(plane, "llama", keys)
    made = talking_to(app)
    made.plane, made.app = plane, app
    try:
        yield made
    finally:
        await plane.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(llama):
    """OpenAI's client for a llama, shared by tests that leave it as it was."""
    async with served(llama) as made:
        yield made


def under_way(plane):
    ((_, model),) = plane.cache.models()
    return model.describe()["generation"]["under_way"]


async def texts(stream):
    """The text of each answer of a stream, and its last part."""
    found, last = {}, None
    async for last in stream:
        for choice in last.choices:
            new = choice.delta.content if hasattr(choice, "delta") else choice.text
            found[choice.index] = found.get(choice.index, "") + (new or "")
    return found, last


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_a_text_goes_on_as_the_model_itself_goes_on(client, llama):
    answer = await client.completions.create(**GREEDY, prompt="The river", max_tokens=8)
    (choice,) = answer.choices
    assert choice.text == greedy(llama, "The river", 8)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "llama", "cmpl-")
    prompt = len(loaded(llama)[1]("The river")["input_ids"])
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": prompt,
        "completion_tokens": 8,
        "total_tokens": prompt + 8,
    }
    by_default = await client.completions.create(**GREEDY, prompt="The river")
    assert by_default.usage.completion_tokens == 16
    echoed = await client.completions.create(**GREEDY, prompt="The river", max_tokens=8, echo=True)
    assert echoed.choices[0].text == "The river" + choice.text


async def test_a_conversation_is_answered_by_the_models_chat_template(client, llama):
    parts = [{"role": "user", "content": [{"type": "text", "text": "The "}, {"type": "text", "text": "river"}]}]
    answer = await client.chat.completions.create(**GREEDY, messages=RIVER, max_completion_tokens=6)
    in_parts = await client.chat.completions.create(**GREEDY, messages=parts, max_tokens=6)
    history = [*RIVER, answer.choices[0].message.model_dump(), {"role": "user", "content": "and"}]
    further = await client.chat.completions.create(**GREEDY, messages=history, max_tokens=4)
    unlimited = await client.chat.completions.create(**GREEDY, messages=RIVER)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == greedy(llama, RIVER, 6)
    assert in_parts.choices[0].message.content == answer.choices[0].message.content
    plain = [{"role": each["role"], "content": each["content"]} for each in history]
    assert further.choices[0].message.content == greedy(llama, plain, 4)
    assert unlimited.usage.total_tokens == CONTEXT  # random models seldom end by themselves
    assert unlimited.choices[0].finish_reason == "length"


async def test_an_answer_without_a_limit_is_as_long_as_the_engines_memory_allows(llama):
    async with served(llama, settings={"engine": "continuous", "cache_tokens": 32}) as client:
        answer = await client.chat.completions.create(**GREEDY, messages=RIVER)
        assert answer.usage.total_tokens == 32


async def test_several_prompts_have_several_answers_in_order(client, llama):
    prompts = ["The river", "A boat came down", "night"]
    answer = await client.completions.create(**GREEDY, prompt=prompts, n=2, max_tokens=5)
    drawn = await client.completions.create(model="llama", prompt="The river", n=4, max_tokens=12, temperature=1.5)
    again = [
        await client.completions.create(model="llama", prompt="The river", n=2, max_tokens=8, seed=7) for _ in range(2)
    ]
    assert [choice.index for choice in answer.choices] == list(range(6))
    expected = [greedy(llama, prompt, 5) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in answer.choices] == expected
    tokenizer = loaded(llama)[1]
    assert answer.usage.prompt_tokens == sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    assert answer.usage.completion_tokens == 30
    assert len({choice.text for choice in drawn.choices}) > 1
    assert again[0].choices == again[1].choices
    assert again[0].choices[0].text != again[0].choices[1].text


async def test_a_stop_string_ends_the_answer_before_it(client, llama):
    whole = greedy(llama, "The river", 20)
    stop = whole[6:9]  # in the middle, over several tokens
    answer = await client.completions.create(**GREEDY, prompt="The river", max_tokens=20, stop=["never", stop])
    stream = await client.completions.create(**GREEDY, prompt="The river", max_tokens=20, stop=stop, stream=True)
    streamed, last = await texts(stream)
    assert answer.choices[0].text == streamed[0] == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == last.choices[0].finish_reason == "stop"


async def test_probabilities_are_told_in_both_formats(client):
    chat = await client.chat.completions.create(**GREEDY, messages=RIVER, max_tokens=4, logprobs=True, top_logprobs=2)
    text = await client.completions.create(**GREEDY, prompt="The river", max_tokens=4, logprobs=2)
    stream = await client.chat.completions.create(**GREEDY, messages=RIVER, max_tokens=4, logprobs=True, stream=True)
    streamed = [each.logprobs.content async for part in stream for each in part.choices if each.logprobs]
    told = chat.choices[0].logprobs.content
    assert len(told) == 4
    for each in told:
        assert each.logprob <= 0
        assert each.bytes == list(each.token.encode())
        assert each.logprob == each.top_logprobs[0].logprob >= each.top_logprobs[1].logprob
        assert each.token == each.top_logprobs[0].token
    assert [each.token for several in streamed for each in several] == [each.token for each in told]
    columns = text.choices[0].logprobs
    assert "".join(columns.tokens) == text.choices[0].text
    assert columns.text_offset[:2] == [0, len(columns.tokens[0])]
    assert all(len(each) == 2 for each in columns.top_logprobs)
    assert columns.token_logprobs == [max(each.values()) for each in columns.top_logprobs]


async def test_what_other_servers_of_the_format_take_besides_is_taken(client):
    more = {"top_k": -1, "min_p": 0.1, "min_tokens": 2, "repetition_penalty": 1.2, "ignore_eos": True, "store": False}
    harmless = {"user": "u", "presence_penalty": 0, "frequency_penalty": 0.0}
    answer = await client.completions.create(
        model="llama", prompt="The river", max_tokens=4, logit_bias={}, best_of=1, extra_body=more, **harmless
    )
    assert answer.usage.completion_tokens == 4


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_a_stream_says_what_comes_at_once_otherwise(client):
    body = {**GREEDY, "messages": RIVER, "max_tokens": 9, "n": 2}
    whole = await client.chat.completions.create(**body)
    stream = await client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    parts = [part async for part in stream]
    raw = await client.http.post("http://serve.test/v1/chat/completions", json={**body, "stream": True})
    assert {part.id for part in parts} == {parts[0].id}
    assert {part.object for part in parts} == {"chat.completion.chunk"}
    for index, choice in enumerate(whole.choices):
        own = [each for part in parts for each in part.choices if each.index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert [each.finish_reason for each in own] == [None] * (len(own) - 1) + ["length"]
    assert (parts[-1].choices, parts[-1].usage) == ([], whole.usage)
    assert all(part.usage is None for part in parts[:-1])
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert raw.text.endswith("\n\ndata: [DONE]\n\n")
    assert '"usage"' not in raw.text


async def test_a_streamed_text_has_its_prompt_before_it_if_it_is_echoed(client, llama):
    stream = await client.completions.create(
        **GREEDY, prompt=["The river", "night"], max_tokens=6, echo=True, stream=True
    )
    found, last = await texts(stream)
    assert found == {index: text + greedy(llama, text, 6) for index, text in enumerate(["The river", "night"])}
    assert last.object == "text_completion"


class Failing:
    """A handler whose engine fails after two pieces."""

    lost = False

    def predict(self, model_requests):
        return ["" for _ in model_requests]

    def start_engine(self):
        return self

    async def generate(self, given, parameters):
        yield Chunk("The", 2, 1)
        yield Chunk(" river", 2, 2)
        raise EngineFailed("a secret in /srv/models")

    def status(self):
        return {}


async def test_what_fails_after_the_first_piece_is_raised_by_the_client():
    async with served(Failing) as failing:
        stream = await failing.completions.create(model="llama", prompt="a", stream=True)
        assert (await anext(stream)).choices[0].text == "The"
        with pytest.raises(openai.APIError, match="raised an error") as caught:
            await texts(stream)
        assert (caught.value.code, caught.value.type) == ("prediction_failed", "server_error")
        raw = await failing.http.post(
            "http://serve.test/v1/completions", json={"model": "llama", "prompt": "a", "stream": True}
        )
        assert raw.status_code == 200
        assert "[DONE]" not in raw.text
        assert "secret" not in raw.text


# --- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "llama", "prompt": ["The river"] * 3, "max_tokens": 50, "stream": True}),
        ("/v1/completions", {"model": "llama", "prompt": ["The river"] * 3, "max_tokens": 50}),
        ("/v1/chat/completions", {"model": "llama", "messages": RIVER, "stream": True}),
        ("/predict", {"inputs": ["The river"] * 3, "parameters": {"max_new_tokens": 50}}),
        ("/predict_stream", {"inputs": ["The river"], "parameters": {"max_new_tokens": 50}}),
    ],
)
async def test_a_client_that_leaves_gives_its_places_back(client, llama, path, body):
    leaving = Client(client.app, path, body)
    await until(lambda: under_way(client.plane))
    await leaving.leave()
    assert under_way(client.plane) == 0
    assert client.plane.status()["pending_requests"] == 0
    ((_, model),) = client.plane.cache.models()
    assert model.describe()["generation"]["engines"][0]["answering"] == 0
    answer = await client.completions.create(**GREEDY, prompt="The river", max_tokens=8)
    assert answer.choices[0].text == greedy(llama, "The river", 8)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"prompt": [1, 2]}, "prompt", "lists of tokens are not taken"),
        ({"prompt": ""}, "prompt", "should not be empty"),
        ({"prompt": "river " * 100}, "prompt", "the model takes 63 at the most"),
        ({"presence_penalty": 0.5}, "presence_penalty", "cannot be used here"),
        ({"logit_bias": {"1": 1}}, "logit_bias", "cannot be used here"),
        ({"temperature": -1}, "temperature", "must be greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "must be greater than or equal to 1"),
        ({"max_tokens": "8"}, "max_tokens", "must be a valid integer"),
        ({"stop": ["a", ""]}, "stop", "must hold no empty text"),
        ({"best_of": 3}, "best_of", "must be 1"),
        ({"echo": True, "logprobs": 1}, "echo", "cannot be used with logprobs"),
        ({"extra_body": {"colour": "red"}}, "colour", "is unknown here"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(client, asked, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        await client.completions.create(**{**GREEDY, "prompt": "The river", **asked})
    assert caught.value.param == param
    assert caught.value.code == "invalid_request"
    assert caught.value.type == "invalid_request_error"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content"),
        ({"tools": [TOOL]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ],
)
async def test_what_a_conversation_cannot_have_is_refused_by_name(client, asked, param):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{**GREEDY, "messages": RIVER, **asked})
    assert caught.value.param == param


async def test_a_model_without_a_chat_template_refuses_conversations(gpt2):
    async with served(gpt2) as client:
        with pytest.raises(openai.BadRequestError, match="no chat template") as caught:
            await client.chat.completions.create(**GREEDY, messages=RIVER)
        assert caught.value.param == "messages"


async def test_what_can_never_fit_is_refused_and_disturbs_nobody(llama):
    async with served(llama, settings={"engine": "continuous", "cache_tokens": 32}) as client:
        others = [client.completions.create(**GREEDY, prompt="The river", max_tokens=20) for _ in range(4)]
        running = asyncio.gather(*others)
        with pytest.raises(openai.BadRequestError, match="holds 32 for one request") as caught:
            await client.completions.create(**GREEDY, prompt="A boat", max_tokens=60)
        answers = await running
    assert caught.value.code == "too_many_tokens"
    assert {each.choices[0].text for each in answers} == {greedy(llama, "The river", 20)}


async def test_the_gate_speaks_the_same_format(llama):
    async with served(llama, keys=ApiKeys(["secret"]), max_body_bytes=200) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "unauthenticated"
        assert caught.value.type == "authentication_error"
        keyed = talking_to(client.app, "secret")
        assert [each.id async for each in await keyed.models.list()] == ["llama"]
        with pytest.raises(openai.APIStatusError) as large:
            await keyed.completions.create(**GREEDY, prompt="river " * 100)
        assert (large.value.status_code, large.value.code) == (413, "body_too_large")
        with pytest.raises(openai.NotFoundError) as nowhere:
            await keyed.embeddings.create(model="llama", input="a")
        assert nowhere.value.code == "not_found"
        headers = {"authorization": "Bearer secret"}
        broken = await client.http.post("http://serve.test/v1/completions", content=b"{", headers=headers)
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "malformed_json")
        method = await client.http.get("http://serve.test/v1/completions", headers=headers)
        assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
        other_page = await client.http.get("http://serve.test/other", headers=headers)
        assert other_page.headers["content-type"] == "application/problem+json"


async def test_too_many_requests_are_told_when_to_come_again(llama):
    async with served(llama, rate_limit=1) as client:
        await client.completions.create(**GREEDY, prompt=["The river", "night"], max_tokens=2)  # counts once
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(**GREEDY, prompt="The river", max_tokens=2)
        assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "1")
        assert caught.value.request_id == caught.value.response.headers["x-request-id"]


# --- models ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def versions(plane, folders):
    """A registered model whose versions 1 and 2 are language models; all others are what they are."""

    def load(version):
        return load_handler(spec(folders[version.number]), takes_body=False)

    async with plane(load=load) as made:
        client = talking_to(native_app(made, "toy"))
        client.plane = made
        yield client


async def test_the_versions_of_a_registered_model_are_models_to_choose_from(plane, llama, gpt2):
    async with versions(plane, {"1": llama, "2": gpt2}) as client:
        listed = [each.id async for each in await client.models.list()]
        assert listed[0] == "toy"
        assert {"toy:champion", "toy:challenger", "toy:2"} <= set(listed)
        assert not {"toy:1", "toy:3"} & set(listed)  # the default itself, and one of another signature
        assert (await client.models.retrieve("toy:challenger")).created > 0
        for model, headers, folder in (
            ("toy", {}, llama),
            ("toy:champion", {}, llama),
            ("toy:2", {}, gpt2),
            ("toy:challenger", {}, gpt2),
            ("toy", {"serve_multiplexed_model_id": "2"}, gpt2),
            ("toy:2", {"serve-multiplexed-model-id": "02"}, gpt2),
        ):
            answer = await client.completions.with_raw_response.create(
                model=model, prompt="The river", temperature=0, max_tokens=6, extra_headers=headers
            )
            assert answer.parse().choices[0].text == greedy(folder, "The river", 6)
            assert answer.headers["serve-model-version"] == ("1" if folder is llama else "2")
            assert answer.parse().model == model


REFUSED = [
    ("gpt-4", {}, 404, "model_not_found"),
    ("toys", {}, 404, "model_not_found"),
    ("toy:", {}, 404, "model_not_found"),
    ("toy:99", {}, 404, "model_not_found"),
    ("toy:3", {}, 409, "signature_conflict"),
    ("toy:2", {"serve_multiplexed_model_id": "1"}, 400, "version_reference_conflict"),
]


async def test_a_model_that_cannot_be_had_is_refused_before_it_is_loaded(plane, llama):
    async with versions(plane, {"1": llama}) as client:
        for model, headers, status, code in REFUSED:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.completions.create(model=model, prompt="a", extra_headers=headers)
            assert (caught.value.status_code, caught.value.code) == (status, code)
            if status == 404:
                assert caught.value.param == "model"
                with pytest.raises(openai.NotFoundError):
                    await client.models.retrieve(model)
        assert client.plane.cache.loads == 1


async def test_a_model_that_generates_nothing_says_so(plane):
    async with plane() as made:
        client = talking_to(native_app(made, "toy"))
        for asked in (
            client.completions.create(model="toy", prompt="a"),
            client.chat.completions.create(model="toy", messages=RIVER, stream=True),
        ):
            with pytest.raises(openai.InternalServerError, match="generates no text") as caught:
                await asked
            assert (caught.value.status_code, caught.value.code) == (501, "generation_unsupported")


# --- many at a time --------------------------------------------------------------------------------------------------


async def test_every_front_answers_many_clients_as_the_model_answers_one(client, llama):
    words = ["The", "river", "rose", "during", "the", "night.", "A", "boat", "came", "down"]
    prompts = [" ".join(words[: 1 + number % len(words)]) for number in range(32)]

    async def ask(number, client):
        prompt, tokens = prompts[number], 4 + number % 7
        parameters = {"temperature": 0, "max_new_tokens": tokens, "return_full_text": False}
        if number % 4 == 0:
            answer = await client.completions.create(**GREEDY, prompt=prompt, max_tokens=tokens)
            return answer.choices[0].text
        if number % 4 == 1:
            found, _ = await texts(
                await client.completions.create(**GREEDY, prompt=prompt, max_tokens=tokens, stream=True)
            )
            return found[0]
        path = "/predict" if number % 4 == 2 else "/predict_stream"
        body = {"inputs": [prompt], "parameters": parameters}
        answer = (await client.http.post(f"http://serve.test{path}", json=body)).text
        return json.loads(answer)["outputs"][0] if path == "/predict" else "".join(map(json.loads, answer.splitlines()))

    answers = await asyncio.gather(*(ask(number, client) for number in range(32)))
    assert answers == [greedy(llama, prompt, 4 + number % 7) for number, prompt in enumerate(prompts)]
