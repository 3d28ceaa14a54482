"""The adapter of vLLM, which asks for other versions of packages than we do: a stand-in tells what it is asked for."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from transformers import GenerationConfig

from registry_serve.errors import HandlerInvalid
from registry_serve.generation import EngineFailed, EngineLost, Likelihood, RequestTooLarge, Settings, Tokens
from registry_serve.generation.vllm import VLLMEngine
from registry_serve.handlers.huggingface import HuggingFaceHandler
from tests import language_models

EOS = 7


class DeadError(Exception):
    pass


class Asynchronous:
    """What the adapter uses of vLLM's engine; it answers with the outputs that a test gives it."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.asked, self.outputs, self.ended = [], [], []
        self.errored = False
        self.model_config = SimpleNamespace(max_model_len=64)

    @classmethod
    def from_engine_args(cls, arguments):
        return cls(arguments)

    async def generate(self, prompt, sampling, name):
        self.asked.append((prompt, sampling, name))
        try:
            for output in self.outputs:
                if isinstance(output, Exception):
                    raise output
                yield SimpleNamespace(outputs=[output])
        finally:
            self.ended.append(name)

    def shutdown(self, timeout):
        self.ended.append("all")


@pytest.fixture
def vllm(monkeypatch):
    kinds = {
        "vllm": {"SamplingParams": lambda **given: given},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": lambda **given: given},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA="delta")},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": Asynchronous},
        "vllm.v1.engine.exceptions": {"EngineDeadError": DeadError},
    }
    for name, members in kinds.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def output(*ids, reason=None, logprobs=None):
    return SimpleNamespace(token_ids=ids, finish_reason=reason, logprobs=logprobs)


def engine(*outputs):
    made = VLLMEngine("a-model", [EOS], dtype="float32")
    made._engine.outputs = outputs
    return made


async def tokens(engine, settings, prompt=(1, 2)):
    return [each async for each in engine.submit(list(prompt), settings)]


def test_where_it_is_not_installed_the_handler_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    model = HuggingFaceHandler(
        task="text-generation", model_name_or_path=language_models.llama(tmp_path), model_dtype="fp32", engine="vllm"
    )
    with pytest.raises(HandlerInvalid, match="pip install vllm"):
        model.start_engine()


def test_a_model_with_an_encoder_is_refused(tmp_path, vllm):
    model = HuggingFaceHandler(
        task="text-generation", model_name_or_path=language_models.t5(tmp_path), model_dtype="fp32", engine="vllm"
    )
    with pytest.raises(HandlerInvalid, match="has an encoder"):
        model.start_engine()


async def test_a_handler_answers_in_text_by_it(tmp_path, vllm):
    model = HuggingFaceHandler(
        task="text-generation", model_name_or_path=language_models.llama(tmp_path), model_dtype="fp32", engine="vllm"
    )
    generator = model.start_engine()
    tokenizer = generator.language.tokenizer
    ids = tokenizer(" boat came")["input_ids"]
    (one,) = generator._engines
    one._engine.outputs = [output(ids[0]), output(*ids[1:], tokenizer.eos_token_id, reason="stop")]
    assert await generator.answer(["The river"], {"do_sample": False}) == ["The river boat came"]
    assert one._engine.arguments["dtype"] == "float32"


async def test_a_models_own_penalty_is_handed_on_and_what_is_not_done_is_told(tmp_path, vllm, caplog):
    folder = language_models.llama(tmp_path)
    own = GenerationConfig.from_pretrained(folder)
    own.update(repetition_penalty=1.5, no_repeat_ngram_size=2)
    own.save_pretrained(folder)
    generator = HuggingFaceHandler(
        task="text-generation", model_name_or_path=folder, model_dtype="fp32", engine="vllm"
    ).start_engine()
    (one,) = generator._engines
    one._engine.outputs = [output(5, reason="length")]
    await generator.answer(["The river"], {"do_sample": False, "max_new_tokens": 1})
    ((_, sampling, _),) = one._engine.asked
    assert sampling["repetition_penalty"] == 1.5
    assert f"The configuration of {folder} asks for no_repeat_ngram_size, which is not done." in caplog.text


async def test_settings_are_handed_on_under_the_names_of_vllm(vllm):
    made = engine(output(3, reason="length"))
    others = {"min_new_tokens": 2, "repetition_penalty": 1.5}
    await tokens(made, Settings(4, True, 0.5, 0.9, 10, seed=1, logprobs=2, others=others))
    ((prompt, sampling, _),) = made._engine.asked
    assert prompt == {"prompt_token_ids": [1, 2]}
    assert sampling == {
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10,
        "seed": 1,
        "stop_token_ids": [EOS],
        "ignore_eos": False,
        "logprobs": 2,
        "detokenize": False,
        "output_kind": "delta",
        "min_tokens": 2,
        "repetition_penalty": 1.5,
    }


async def test_without_sampling_the_likeliest_token_is_taken(vllm):
    made = engine(output(3, reason="length"))
    await tokens(made, Settings(4, ignore_eos=True))
    ((_, sampling, _),) = made._engine.asked
    assert (sampling["temperature"], sampling["stop_token_ids"], sampling["ignore_eos"]) == (0.0, [], True)


def test_beams_are_not_taken(vllm):
    made = engine()
    assert made.takes(Settings(4, seed=1, logprobs=2, others={"min_p": 0.1}))
    assert not made.takes(Settings(4, others={"num_beams": 2}))


async def test_the_token_that_ends_an_answer_is_not_part_of_it(vllm):
    told = await tokens(engine(output(3), output(4, EOS, reason="stop")), Settings(9))
    assert told == [Tokens((3,)), Tokens((4,), "stop")]
    told = await tokens(engine(output(3, EOS, reason="length")), Settings(2, ignore_eos=True))
    assert told == [Tokens((3, EOS), "length")]


async def test_probabilities_come_with_the_likeliest_first(vllm):
    likely = {
        3: SimpleNamespace(logprob=-2.0, rank=2),
        5: SimpleNamespace(logprob=-0.5, rank=1),
    }
    (told,) = await tokens(engine(output(3, reason="length", logprobs=[likely])), Settings(1, logprobs=2))
    assert told.logprobs == (-2.0,)
    assert told.likeliest == ((Likelihood(5, -0.5), Likelihood(3, -2.0)),)


async def test_a_request_beyond_the_context_is_refused_before_vllm_sees_it(vllm):
    made = engine()
    with pytest.raises(RequestTooLarge) as refused:
        await tokens(made, Settings(63))
    assert refused.value.args == (65, 64)
    assert made._engine.asked == []


async def test_a_reader_that_leaves_ends_the_request(vllm):
    made = engine(output(3), output(4), output(5, reason="length"))
    answer = made.submit([1], Settings(9))
    assert await anext(answer) == Tokens((3,))
    assert made.status()["answering"] == 1
    await answer.aclose()
    assert made._engine.ended == ["request-0"]
    assert made.status()["answering"] == 0


async def test_ended_processes_are_told_from_a_refused_request(vllm):
    with pytest.raises(EngineLost):
        await tokens(engine(output(3), DeadError()), Settings(9))
    with pytest.raises(EngineFailed):
        await tokens(engine(ValueError("no")), Settings(9))
    with pytest.raises(EngineFailed, match="abort"):
        await tokens(engine(output(3, reason="abort")), Settings(9))
