"""The default handler, with real models of random weights: on the GPU where there is one, else on the CPU."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from registry_serve.downloaders import Download
from registry_serve.errors import HandlerInvalid, InvalidRequest
from registry_serve.generation.parameters import GenerationParameters
from registry_serve.generation.pieces import before_stop
from registry_serve.handlers import HandlerSpec, build
from registry_serve.handlers.huggingface import HuggingFaceHandler
from tests import language_models
from tests.language_models import CONTEXT, one_thread, saved, sentence_tokenizer  # noqa: F401

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GREEDY = {"do_sample": False, "max_new_tokens": 12}
PROMPTS = ["The river", "A boat came down the river and", "night", "Größe"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return language_models.gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return language_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return language_models.t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(1)
    tokenizer = sentence_tokenizer(model_max_length=CONTEXT)
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    return saved(tmp_path_factory.mktemp("bert"), tokenizer, BertModel(config))


def handler(folder, task="text-generation", **settings):
    return HuggingFaceHandler(**{"task": task, "model_name_or_path": folder, "model_dtype": "fp32", **settings})


def asked(inputs, **parameters):
    return [{"input": each, "parameters": dict(parameters)} for each in inputs]


def faults(handler, *args, **kwargs):
    with pytest.raises(InvalidRequest) as caught:
        handler.predict(asked(*args, **kwargs))
    return caught.value.errors


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_batch_answers_as_each_of_its_prompts_does_alone(kind, request):
    model = handler(request.getfixturevalue(kind))
    alone = [model.predict(asked([each], **GREEDY))[0] for each in PROMPTS]
    assert model.predict(asked(PROMPTS, **GREEDY)) == alone
    assert len(set(alone)) > 2  # the model does look at its prompt


def test_what_torch_generates_without_us_is_what_we_answer(gpt2):
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2), PreTrainedTokenizerFast.from_pretrained(gpt2)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    for _ in range(12):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert handler(gpt2).predict(asked(PROMPTS[:1], **GREEDY)) == [tokenizer.decode(ids[0], skip_special_tokens=True)]


def test_the_prompt_stands_before_the_answer_unless_it_is_not_wanted(llama):
    model = handler(llama)
    (full,) = model.predict(asked(["The river"], **GREEDY))
    (answer,) = model.predict(asked(["The river"], **GREEDY, return_full_text=False))
    assert full == "The river" + answer
    assert answer.strip()


def test_an_encoder_decoder_answers_without_the_prompt(t5):
    (answer,) = handler(t5).predict(asked(["The river"], **GREEDY))
    assert answer
    assert not answer.startswith("The river")


def test_every_request_gets_its_own_parameters_in_its_own_place(gpt2):
    model = handler(gpt2)
    lengths = [3, 9, 3, 6]
    requests = [
        {"input": each, "parameters": {"do_sample": False, "max_new_tokens": length}}
        for each, length in zip(PROMPTS, lengths, strict=True)
    ]
    assert model.predict(requests) == [model.predict([each])[0] for each in requests]


def test_requests_without_parameters_are_sampled_with_the_documented_defaults(gpt2):
    answers = handler(gpt2).predict([{"input": "The river", "parameters": {}} for _ in range(4)])
    assert len(set(answers)) > 1
    parameters = GenerationParameters.of({"n": None})
    assert (parameters.top_p, parameters.temperature, parameters.max_new_tokens) == (0.95, 0.8, 256)
    assert parameters.use_cache
    assert parameters.do_sample


def test_a_temperature_of_zero_takes_the_likeliest_token(gpt2):
    model = handler(gpt2)
    cold = model.predict(asked(PROMPTS, temperature=0, n=1, max_new_tokens=12))
    assert cold == model.predict(asked(PROMPTS, **GREEDY))
    assert cold == model.predict(asked(PROMPTS, temperature=0.0, max_new_tokens=12))


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch_and_touches_no_other_request(gpt2):
    model = handler(gpt2)
    (alone,) = model.predict(asked(["night"], seed=5, max_new_tokens=20))
    assert model.predict(asked([*PROMPTS, "night"], seed=5, max_new_tokens=20))[-1] == alone
    assert model.predict(asked(["night"], seed=6, max_new_tokens=20)) != [alone]
    after = []
    for _ in range(2):
        model.predict(asked(["night"], seed=5, max_new_tokens=1))
        after += model.predict(asked(["night"], max_new_tokens=20))
    assert after[0] != after[1]


def test_several_texts_for_one_prompt_stay_one_output(gpt2):
    answers = handler(gpt2).predict(asked(PROMPTS[:2], n=3, max_new_tokens=8))
    assert [len(each) for each in answers] == [3, 3]
    assert all(text.startswith(prompt) for prompt, texts in zip(PROMPTS, answers, strict=False) for text in texts)
    beams = handler(gpt2).predict(asked(PROMPTS[:1], num_return_sequences=2, num_beams=2, do_sample=False))
    assert len(set(beams[0])) == 2


def test_an_answer_ends_before_what_it_is_to_stop_at(gpt2):
    model = handler(gpt2)
    wanted = model.predict(asked(PROMPTS, **GREEDY, return_full_text=False))
    stops = [each[4:6] for each in wanted]
    stopped = model.predict(asked(PROMPTS, **GREEDY, return_full_text=False, stop=stops))
    assert stopped == ["".join(before_stop([each], stops)) for each in wanted]
    assert all(len(each) <= 4 for each in stopped)
    assert model.predict(asked(PROMPTS[:1], **GREEDY, return_full_text=False, stop=stops[0])) == [
        "".join(before_stop(wanted[:1], stops[:1]))
    ]


def test_the_answer_ends_where_the_context_does_also_beside_shorter_prompts(gpt2):
    model = handler(gpt2)
    longest = "x" * (CONTEXT - 2)
    alone = model.predict(asked([longest], do_sample=False))
    short = model.predict(asked(["night"], do_sample=False))
    assert model.predict(asked([longest, "night"], do_sample=False)) == alone + short


def test_a_conversation_goes_through_the_chat_template(llama):
    model = handler(llama)
    (reply,) = model.predict(asked([[{"role": "user", "content": "A boat"}]], **GREEDY))
    (text,) = model.predict(asked(["<user>A boat<assistant>"], **GREEDY, return_full_text=False))
    assert reply == text


def test_a_model_keeps_its_own_settings_where_there_is_no_default(gpt2, tmp_path, caplog, monkeypatch):
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2), PreTrainedTokenizerFast.from_pretrained(gpt2)
    likeliest = model(tokenizer("night", return_tensors="pt")["input_ids"]).logits[0, -1].argmax().item()
    model.generation_config.update(suppress_tokens=[likeliest], max_length=9, temperature=0.3, do_sample=True, top_k=7)
    changed = handler(saved(tmp_path, tokenizer, model))
    assert changed.predict(asked(["night"], **GREEDY)) != handler(gpt2).predict(asked(["night"], **GREEDY))
    transformers_log = logging.getLogger("transformers")
    monkeypatch.setattr(transformers_log, "propagate", True)
    caplog.clear()
    for parameters in (GREEDY, {"temperature": 0}, {"max_new_tokens": 8, "stop": "x"}, {"n": 2, "max_new_tokens": 8}):
        changed.predict(asked(["night"], **parameters))
    assert caplog.text == ""  # nothing contradicts anything


def test_more_prompts_than_fit_into_one_call_are_all_answered(gpt2):
    prompts = [f"The river {number}" for number in range(70)]
    answers = handler(gpt2).predict(asked(prompts, do_sample=False, max_new_tokens=1))
    assert [answer.startswith(prompt) for prompt, answer in zip(prompts, answers, strict=True)] == [True] * 70


# --- piece by piece --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("full", [True, False])
def test_the_pieces_together_are_the_whole(kind, full, request):
    model = handler(request.getfixturevalue(kind))
    for prompt in PROMPTS[2:]:
        parameters = {"do_sample": False, "max_new_tokens": 30, "return_full_text": full}
        pieces = list(model.predict_stream(input=prompt, parameters=parameters))
        assert "".join(pieces) == model.predict([{"input": prompt, "parameters": parameters}])[0]
        assert all(pieces)
        assert len(pieces) > 1


def test_a_seed_gives_the_same_pieces(gpt2):
    model = handler(gpt2)
    parameters = {"seed": 5, "max_new_tokens": 20, "return_full_text": False, "ignore_eos": True}
    (wanted,) = model.predict(asked(["night"], **parameters))
    for _ in range(2):
        assert "".join(model.predict_stream(input="night", parameters=parameters)) == wanted


def test_pieces_also_end_before_what_they_are_to_stop_at(gpt2):
    model = handler(gpt2)
    parameters = {**GREEDY, "return_full_text": False}
    (wanted,) = model.predict(asked(["night"], **parameters))
    parameters["stop"] = wanted[5:8]
    pieces = list(model.predict_stream(input="night", parameters=parameters))
    assert "".join(pieces) == wanted[: wanted.index(wanted[5:8])]


def test_a_text_is_passed_on_up_to_the_first_stop_however_it_is_cut():
    assert list(before_stop(["ab", "c", "de"], [])) == ["ab", "c", "de"]
    for cut in (["a<e", "nd>b"], ["a<end>b"], list("a<end>b"), ["a", "<end>", "b"]):
        assert "".join(before_stop(cut, ["<end>", "zzzzzzzz"])) == "a"
    assert "".join(before_stop(["a<", "e"], ["<end>"])) == "a<e"


def test_a_reader_that_leaves_ends_the_generation(gpt2, monkeypatch):
    model, calls = handler(gpt2), []
    forward = GPT2LMHeadModel.forward
    monkeypatch.setattr(
        GPT2LMHeadModel, "forward", lambda *args, **kw: calls.append(time.sleep(0.02)) or forward(*args, **kw)
    )
    pieces = model.predict_stream(input="night", parameters={"do_sample": False, "max_new_tokens": 55})
    for _ in range(3):
        next(pieces)
    before = len(calls)
    pieces.close()
    assert len(calls) <= before + 2 < 20
    assert not any("_generate_into" in each.name for each in threading.enumerate())


def test_what_is_raised_while_text_is_generated_reaches_the_reader(gpt2, monkeypatch):
    model = handler(gpt2)

    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(model.predict_stream(input="night", parameters={}))


def test_a_stream_is_refused_before_it_begins(gpt2, bert):
    for parameters in ({"n": 2}, {"num_beams": 2}, {"loudness": 3}):
        with pytest.raises(InvalidRequest, match=r"parameters\."):
            handler(gpt2).predict_stream(input="night", parameters=parameters)
    with pytest.raises(InvalidRequest, match="embeddings"):
        handler(bert, "feature-extraction").predict_stream(input="night", parameters={})


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "place", "said"),
    [
        ({"loudness": 3}, "loudness", "max_new_tokens"),
        ({"custom_generate": "somebody/code"}, "custom_generate", "unknown"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"max_new_tokens": 0}, "max_new_tokens", "greater than or equal to 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens", "integer"),
        ({"do_sample": 1}, "do_sample", "boolean"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"stop": 3}, "stop", "tuple"),
        ({"n": 2, "temperature": 0}, "parameters", "without sampling"),
    ],
)
def test_parameters_without_a_meaning_are_refused(gpt2, parameters, place, said):
    (fault,) = faults(handler(gpt2), ["night"], **parameters)
    assert fault["location"][0] == "parameters"
    assert place in fault["location"]
    assert said in fault["message"]


def test_inputs_that_cannot_be_answered_are_named_with_their_lengths(gpt2):
    found = faults(handler(gpt2), ["night", "", 3, "x" * 100, None, [{"role": "user", "content": "a"}], ["a", "b"]])
    assert [each["location"] for each in found] == [["inputs", place] for place in range(1, 7)]
    said = [each["message"] for each in found]
    assert "empty" in said[0]
    assert "a text" in said[1]
    assert "100 tokens" in said[2]
    assert f"{CONTEXT - 1} at the most" in said[2]
    assert "no chat template" in said[4]
    assert "x" * 10 not in str(found)


def test_a_conversation_that_its_template_refuses_is_the_callers_fault(llama, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    folder = saved(tmp_path, tokenizer, LlamaForCausalLM.from_pretrained(llama))
    (fault,) = faults(handler(folder), [[{"role": "user", "content": "a"}]])
    assert "roles" in fault["message"]


def test_messages_without_a_text_are_named_each(llama):
    said = {"role": "user", "content": "a"}
    wordless = [{"role": "user", "content": content} for content in (None, 3, ["a"], {"type": "text", "text": "a"})]
    found = faults(handler(llama), ["night", [said, *wordless], [wordless[0]]])
    places = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 0]]
    assert [each["location"] for each in found] == [["inputs", *place, "content"] for place in places]
    assert {each["message"] for each in found} == {"should be a text"}
    with pytest.raises(InvalidRequest, match=r"inputs\[0\]\[0\]\.content should be a text"):
        handler(llama).predict_stream(input=wordless[:1])


# --- embeddings ------------------------------------------------------------------------------------------------------


def vectors(folder, text):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return BertModel.from_pretrained(folder)(input_ids=ids).last_hidden_state[0]


def test_an_embedding_is_the_mean_over_the_tokens_whatever_stands_beside_it(bert):
    embeddings = handler(bert, "feature-extraction").predict(asked(PROMPTS))
    for text, embedding in zip(PROMPTS, embeddings, strict=True):
        assert embedding == pytest.approx(vectors(bert, text).mean(0).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "mode", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}]
)
def test_a_model_of_sentence_transformers_is_pooled_as_it_says(bert, tmp_path, mode):
    folder = sentence_transformers(bert, tmp_path, mode, "Normalize")
    (embedding,) = handler(folder, "feature-extraction").predict(asked(["The river"]))
    first = vectors(bert, "The river")[0]
    assert embedding == pytest.approx((first / first.norm()).tolist(), abs=1e-4)


def test_pooling_that_cannot_be_done_here_is_refused(bert, tmp_path):
    with pytest.raises(HandlerInvalid, match="max_tokens pooling"):
        handler(sentence_transformers(bert, tmp_path, {"pooling_mode_max_tokens": True}), "feature-extraction")
    with pytest.raises(HandlerInvalid, match="Dense"):
        handler(sentence_transformers(bert, tmp_path, {"pooling_mode": "mean"}, "Dense"), "feature-extraction")


def test_pooling_that_cannot_be_looked_up_is_refused_and_not_guessed(bert, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache, commit = tmp_path / "models--org--name", "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    shutil.copytree(bert, cache / "snapshots" / commit)
    with pytest.raises(HandlerInvalid, match=r"'org/name' may have a file modules\.json .* hub does not answer; start"):
        handler("org/name", "feature-extraction")
    # As the hub's client notes what the hub has not.
    for each in ("modules.json", "1_Pooling/config.json"):
        noted = cache / ".no_exist" / commit / each
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.touch()
    (embedding,) = handler("org/name", "feature-extraction").predict(asked(["The river"]))
    assert embedding == pytest.approx(vectors(bert, "The river").mean(0).tolist(), abs=1e-4)


def sentence_transformers(bert, folder, pooling, *others):
    saved(folder, PreTrainedTokenizerFast.from_pretrained(bert), BertModel.from_pretrained(bert))
    kinds = ["Transformer", "Pooling", *others]
    modules = [
        {"idx": place, "path": f"{place}_{kind}" if place else "", "type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return str(folder)


def test_an_encoder_decoder_embeds_with_its_encoder(t5):
    short, alone = handler(t5, "feature-extraction").predict(asked(["The river", "night"]))
    assert len(short) == 32
    assert handler(t5, "feature-extraction").predict(asked(["night"]))[0] == pytest.approx(alone, abs=1e-4)


def test_many_texts_are_embedded_in_their_order(bert):
    texts = [f"{'river ' * (number % 7)}{number}" for number in range(70)]
    model = handler(bert, "feature-extraction")
    embeddings = model.predict(asked(texts))
    for place in (0, 13, 41, 69):
        assert embeddings[place] == pytest.approx(model.predict(asked([texts[place]]))[0], abs=1e-4)


def test_embedding_refuses_parameters_and_what_is_no_text_or_too_long(bert):
    model = handler(bert, "feature-extraction")
    (fault,) = faults(model, ["night"], temperature=1)
    assert fault["location"] == ["parameters", "temperature"]
    assert len(faults(model, ["", ["instruction", "text"], "river " * 100, [{"role": "user", "content": "a"}]])) == 4


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        ("fp32", torch.float32),
        ("fp16", torch.float16 if DEVICE == "cuda" else torch.float32),
    ],
)
def test_the_weights_have_the_dtype_that_is_asked_for(gpt2, name, dtype, caplog):
    model = handler(gpt2, model_dtype=name)
    weights = next(model._model._model.parameters())
    assert (weights.dtype, weights.device.type) == (dtype, DEVICE)
    assert ("fp32" in caplog.text) == (name == "fp16" and DEVICE == "cpu")
    assert model.predict(asked(PROMPTS, **GREEDY))


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_computes_in_less_precision_than_the_weights_have(gpt2, bert, name, dtype):
    model, seen = handler(gpt2, autocast_dtype=name), set()
    model._model._model.lm_head.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    model.predict(asked(PROMPTS, **GREEDY))
    list(model.predict_stream(input="night", parameters=GREEDY))
    assert seen == {dtype}
    assert handler(bert, "feature-extraction", autocast_dtype=name).predict(asked(["night"]))


def test_settings_without_a_meaning_are_refused_with_those_that_have_one(gpt2):
    with pytest.raises(HandlerInvalid, match=r"text-generation or feature-extraction.*'translation'"):
        handler(gpt2, task="translation")
    with pytest.raises(HandlerInvalid, match=r"model_dtype must be one of fp16.*'int8'"):
        handler(gpt2, model_dtype="int8")
    with pytest.raises(HandlerInvalid, match="autocast_dtype"):
        handler(gpt2, autocast_dtype="fp32")


def test_a_model_that_is_not_there_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name, said in {
        str(tmp_path / "empty"): "is neither a folder with a model nor",
        str(tmp_path / "missing"): "is neither a folder with a model nor",
        "registry-serve/there-is-no-such-model": "is neither a folder with a model nor",
    }.items():
        with pytest.raises(HandlerInvalid) as caught:
            handler(name)
        assert f"{name!r} {said}" in str(caught.value)
        assert "\n" not in str(caught.value)


def copied(source, target):
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


@pytest.mark.parametrize("removed", ["*", "config.json", "model.safetensors"])
def test_a_model_whose_files_were_removed_is_downloaded_again(gpt2, tmp_path, monkeypatch, removed, caplog):
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", str(tmp_path / "artifacts"))
    target = tmp_path / "model"
    download = Download(copied, {"source": gpt2, "target": str(target)})
    spec = HandlerSpec("huggingface", {"task": "text-generation"}, download)
    build(spec)
    for each in target.glob(removed):
        each.unlink()
    assert build(spec).predict(asked(["night"], **GREEDY)) == handler(gpt2).predict(asked(["night"], **GREEDY))
    assert "is downloaded again" in caplog.text


def test_a_folder_that_a_handler_names_wrongly_is_told_with_its_cause(tmp_path):
    with pytest.raises(HandlerInvalid, match="neither a folder") as caught:
        handler(str(tmp_path / "missing"))
    assert type(caught.value.__cause__) is FileNotFoundError


def test_a_model_with_code_of_its_own_is_refused_unless_that_is_trusted(gpt2, tmp_path):
    folder = saved(tmp_path, PreTrainedTokenizerFast.from_pretrained(gpt2), GPT2LMHeadModel.from_pretrained(gpt2))
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class Mine(GPT2Config):\n    model_type = 'mine'\n"
        "class MineLM(GPT2LMHeadModel):\n    config_class = Mine\n"
    )
    with pytest.raises(HandlerInvalid, match="trust_remote_code"):
        handler(folder)
    assert handler(folder, trust_remote_code=True).predict(asked(["night"], **GREEDY)) == handler(gpt2).predict(
        asked(["night"], **GREEDY)
    )


def test_without_the_packages_it_says_which_extra_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from registry_serve.handlers.huggingface import HuggingFaceHandler\n"
        "assert 'transformers' not in sys.modules\n"
        "HuggingFaceHandler(task='text-generation', model_name_or_path='a')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert "HandlerInvalid" in ended.stderr
    assert "needs torch" in ended.stderr
    assert "pip install 'registry-serve[transformers]'" in ended.stderr
