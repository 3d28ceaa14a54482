"""Registered language models by an engine of their own: MLflow's transformers flavour, by version."""

import asyncio
import copy
import json
from functools import cache, partial

import httpx
import mlflow
import openai
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from registry_serve.errors import ConfigurationError, GenerationUnsupported, InvalidRequest, LoadFailed
from registry_serve.models.attempts import Attempts
from registry_serve.models.held import load_held
from registry_serve.models.isolated import load_isolated
from registry_serve.models.language import obstacle
from registry_serve.models.loading import Loader
from registry_serve.policies import LoadPolicy, RegistryAddress
from registry_serve.protocols.native import native_app
from registry_serve.registry import Registry
from registry_serve.signature import Request
from tests import language_models
from tests.language_models import one_thread  # noqa: F401
from tests.mlflow_server import made_global

PARAMS = {"max_new_tokens": 6, "do_sample": False}
WORDS = "The river rose during the night. A boat came down"
PROMPTS = ["The river", "A boat came down", "night"]


@pytest.fixture(scope="module")
def writer(shelf, tmp_path_factory):
    """Three versions: a llama, a gpt2, and a pyfunc of the same signature that generates nothing."""

    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return [text.upper() for text in model_input.iloc[:, 0]]

    folders = [make(tmp_path_factory.mktemp("lm")) for make in (language_models.llama, language_models.gpt2)]
    with made_global(shelf.uri), mlflow.start_run(experiment_id=shelf.experiment):
        for folder in folders:
            model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            written = mlflow.transformers.log_model(
                pipeline("text-generation", model=model, tokenizer=tokenizer),
                name="writer",
                pip_requirements=[],
                input_example=("The river", PARAMS),
                registered_model_name="writer",
            )
        signature = mlflow.models.get_model_info(written.model_uri).signature
        mlflow.pyfunc.log_model(
            name="writer", python_model=Echo(), signature=signature, pip_requirements=[], registered_model_name="writer"
        )
    return folders


@pytest.fixture
def load(shelf, tmp_path):
    """How a replica loads versions, with an engine for those that generate."""
    registry = Registry(RegistryAddress(shelf.uri))
    loader = Loader(LoadPolicy(engine="auto"), load_isolated, Attempts(tmp_path))
    return lambda version: load_held(partial(registry.download, version), partial(loader.load, version))


@cache
def generated(folder, prompt, **settings):
    """What the model itself makes of a prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = {"max_new_tokens": 6, "do_sample": False, **settings}
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    made = model.generate(ids, pad_token_id=0, **asked)[0]
    return tokenizer.decode(made, skip_special_tokens=True)


def texts(prompt, **parameters):
    """Read a body as a protocol of texts does."""
    return lambda schema, body: Request([prompt], parameters, 1, texts=True)


async def test_each_version_generates_by_an_engine_and_answers_as_its_signature_says(writer, plane, load):
    async with plane("writer", load=load) as made:
        body = json.dumps({"inputs": PROMPTS, "params": PARAMS}).encode()
        for number, folder in zip("12", writer, strict=True):
            answer = await made.predict(number, body)
            assert answer.version == number
            assert json.loads(answer.body) == [generated(folder, prompt) for prompt in PROMPTS]
        loaded = {each["version"]: each["loaded"] for each in (await made.describe())["versions"] if each["loaded"]}
        assert {number: loaded[number]["generation"]["engines"][0]["engine"] for number in "12"} == {
            "1": "continuous",
            "2": "continuous",
        }


def test_a_model_that_cannot_be_batched_continuously_says_why_where_that_is_asked_for(shelf, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(language_models.llama(tmp_path))
    model.generation_config.update(no_repeat_ngram_size=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with made_global(shelf.uri), mlflow.start_run(experiment_id=shelf.experiment):
        mlflow.transformers.log_model(
            pipeline("text-generation", model=model, tokenizer=tokenizer),
            name="careful",
            pip_requirements=[],
            input_example=("The river", PARAMS),
            registered_model_name="careful",
        )
    registry = Registry(RegistryAddress(shelf.uri))
    version = registry.version("careful", "1")

    def load(engine):
        loader = Loader(LoadPolicy(engine=engine), load_isolated, Attempts(tmp_path))
        return load_held(partial(registry.download, version), partial(loader.load, version))

    with pytest.raises(LoadFailed) as failed:
        load("continuous")
    assert str(failed.value) == (
        "Version 1 of 'careful' cannot be loaded: it cannot be batched continuously: its own configuration asks for "
        "no_repeat_ngram_size."
    )
    held = load("auto")
    assert [each["engine"] for each in held.engine_status()["engines"]] == ["static"]
    held.close()


async def test_defaults_of_the_signature_hold_for_requests_that_say_nothing(writer, plane, load):
    async with plane("writer", load=load) as made:
        answer = await made.predict(None, json.dumps(["The river"]).encode())
        assert json.loads(answer.body) == [generated(writer[0], "The river")]


async def test_thirty_two_callers_of_two_versions_get_what_each_gets_alone(writer, plane, load):
    async with plane("writer", load=load) as made:
        asked = [(str(1 + each % 2), WORDS[: 3 + each]) for each in range(32)]
        answers = await asyncio.gather(
            *(
                made.predict(number, json.dumps({"inputs": [prompt], "params": PARAMS}).encode())
                for number, prompt in asked
            )
        )
        expected = [[generated(writer[int(number) - 1], prompt)] for number, prompt in asked]
        assert [json.loads(answer.body) for answer in answers] == expected


async def test_texts_of_another_protocol_need_no_params_of_the_signature(writer, plane, load):
    async with plane("writer", load=load) as made:
        asked = texts("The river", max_new_tokens=6, temperature=0, return_full_text=False, stop=["zzz"])
        pieces = [piece async for piece in made.generate("1", b"", asked)]
        assert "The river" + "".join(piece.chunk.text for piece in pieces) == generated(writer[0], "The river")
        assert pieces[-1].chunk.finish_reason in ("stop", "length")


async def test_openais_client_and_streams_of_events_ask_for_a_version(writer, plane, load):
    async with plane("writer", load=load) as made:
        transport = httpx.ASGITransport(native_app(made, "writer"))
        http = httpx.AsyncClient(transport=transport, base_url="http://serve.test")
        client = openai.AsyncOpenAI(api_key="none", base_url="http://serve.test/v1", http_client=http)
        for number, folder in zip("12", writer, strict=True):
            expected = generated(folder, "The river")
            answer = await client.completions.create(
                model=f"writer:{number}", prompt="The river", max_tokens=6, temperature=0, echo=True
            )
            assert answer.choices[0].text == expected
            body = {"inputs": ["The river"], "params": PARAMS}
            streamed = (await http.post(f"/versions/{number}/serve/stream", json=body)).text
            *pieces, end = streamed.removesuffix("\n\n").split("\n\n")
            assert "".join(json.loads(piece.removeprefix("data: ")) for piece in pieces) == expected
            assert end.startswith("event: done")
        talk = [{"role": "user", "content": "The river"}]
        reply = await client.chat.completions.create(model="writer", messages=talk, max_tokens=4)
        assert reply.usage.completion_tokens <= 4


async def test_a_version_that_generates_nothing_answers_as_ever_and_refuses_completions(writer, plane, load):
    async with plane("writer", load=load) as made:
        answer = await made.predict("3", json.dumps({"inputs": ["night"], "params": PARAMS}).encode())
        assert json.loads(answer.body) == ["NIGHT"]
        with pytest.raises(GenerationUnsupported):
            await made.predict("3", b"", texts("night"))
        with pytest.raises(GenerationUnsupported):
            await anext(made.generate("3", b"", texts("night")))


async def test_without_an_engine_a_version_is_called_as_all_other_models(writer, plane):
    async with plane("writer") as made:
        answer = await made.predict("2", json.dumps({"inputs": ["The river"], "params": PARAMS}).encode())
        (text,) = json.loads(answer.body)
        assert text.startswith("The river")
        with pytest.raises(GenerationUnsupported):
            await made.predict("2", b"", texts("night"))


async def test_a_version_that_generates_nothing_is_refused_before_it_is_loaded(writer, plane, load):
    async with plane("writer", load=load) as made:
        made._may_generate = lambda version: version.card.generates  # as a deployment says it
        loads = made.cache.loads

        async def read():
            return "3", [Request(["night"], {}, 1, texts=True)]

        with pytest.raises(GenerationUnsupported):
            await anext(made.generate_each(read))
        assert made.cache.loads == loads


def test_what_an_engine_would_answer_otherwise_is_left_to_mlflow(writer, shelf, tmp_path):
    registry = Registry(RegistryAddress(shelf.uri))
    version = registry.version("writer", "1")
    files = registry.download(version)
    document = yaml.safe_load((files.directory / "MLmodel").read_text())
    files.release()
    changes = {
        "adapter": lambda told: told["flavors"]["transformers"].update(peft_adaptor="LoraModel"),
        "prompt template": lambda told: told.update(metadata={"prompt_template": "Answer: {prompt}"}),
        "not in the registry": lambda told: told["flavors"]["transformers"].pop("model_binary"),
        "pad_token_id": lambda told: told["flavors"]["python_function"].update(config={"pad_token_id": 0}),
    }
    for word, change in changes.items():
        changed = copy.deepcopy(document)
        change(changed)
        (tmp_path / "MLmodel").write_text(yaml.safe_dump(changed))
        assert word in obstacle(version, tmp_path)
    (tmp_path / "MLmodel").write_text(yaml.safe_dump(document))
    assert obstacle(version, tmp_path) is None


async def test_a_param_that_generation_does_not_know_is_named(writer, plane, load):
    async with plane("writer", load=load) as made:
        with pytest.raises(InvalidRequest, match="warmth"):
            await made.predict("1", b"", texts("night", warmth=3))


def test_an_engine_that_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match="engine must be"):
        LoadPolicy(engine="steam")
