"""The engines that generate, and texts made by them: real models of random weights, in one process."""

import asyncio
import copy
import inspect
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.continuous_batching.requests import RequestState

from registry_serve.errors import HandlerInvalid, InvalidRequest
from registry_serve.generation import EngineFailed, RequestTooLarge, Settings, Tokens
from registry_serve.generation.batches import TextGeneration
from registry_serve.generation.continuous import ContinuousEngine, twin
from registry_serve.generation.drawing import _BEYOND, DOES, _MinP, _WhereAsked, beyond, processors
from registry_serve.generation.generator import generator_of
from registry_serve.generation.language import Language
from registry_serve.generation.pieces import TokensAsText
from registry_serve.generation.precision import Precision
from registry_serve.generation.pretrained import Source
from registry_serve.generation.repetition import Repetition
from registry_serve.generation.seeds import seeded
from registry_serve.generation.static import StaticEngine
from registry_serve.generation.together import within
from tests import language_models
from tests.language_models import one_thread  # noqa: F401

FP32 = Precision("cpu", torch.float32, None)
CACHE_TOKENS = 2048
#: ``generate`` ignores an end of None.
NO_TOKEN = 10_000
PROMPTS = [[5 + (7 * place + step) % 60 for step in range(1 + place % 13)] for place in range(32)]


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """A language and its model, by name."""
    made = {}
    for name in ("llama", "gpt2", "t5"):
        folder = getattr(language_models, name)(tmp_path_factory.mktemp(name))
        language = Language(Source(folder, FP32, trusted=False))
        made[name] = language, language.weights()
    return made


@pytest.fixture
def llama(languages):
    return languages["llama"]


@contextmanager
def continuous(language, model, cache_tokens=CACHE_TOKENS):
    engine = ContinuousEngine(model, language.ends(model), language.context, cache_tokens)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def static(language, model):
    pad = language.tokenizer.pad_token_id
    engine = StaticEngine(model, FP32, pad, language.ends(model), encodes=language.encodes, context=language.context)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def generating(language, model, engine="auto"):
    generator = generator_of(language, model, engine, CACHE_TOKENS)
    try:
        yield generator
    finally:
        generator.close()


async def answer(engine, prompt, settings):
    """The tokens of an answer, and how it ended."""
    ids, reason = [], None
    async for tokens in engine.submit(prompt, settings):
        ids += tokens.ids
        reason = tokens.finish_reason
    return ids, reason


async def many(engine, prompts, settings):
    return await asyncio.gather(*(answer(engine, each, settings) for each in prompts))


def expected(model, prompt, new_tokens, **options):
    """What ``generate`` adds to a prompt, without the token that ends it."""
    with torch.inference_mode():
        options = {"do_sample": False, **options}
        (row,) = model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, **options).tolist()
    added = row[len(prompt) :]
    end = options.get("eos_token_id", model.generation_config.eos_token_id)
    return added[: added.index(end)] if end in added else added


# --- continuous batching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
async def test_answers_equal_those_of_generate_alone_and_among_32(languages, name):
    language, model = languages[name]
    wanted = [expected(model, each, 20) for each in PROMPTS]
    with continuous(language, model) as engine:
        assert (await answer(engine, PROMPTS[3], Settings(20)))[0] == wanted[3]
        found = await many(engine, PROMPTS, Settings(20))
    assert [ids for ids, _ in found] == wanted
    assert [reason for _, reason in found] == ["length" if len(each) == 20 else "stop" for each in wanted]


async def test_those_that_draw_leave_the_others_as_they_are(llama):
    language, model = llama
    wanted = [expected(model, each, 20) for each in PROMPTS[:8]]
    with continuous(language, model) as engine:
        drawn = many(engine, PROMPTS[:8], Settings(20, samples=True, temperature=1.5, ignore_eos=True))
        greedy, chance = await asyncio.gather(many(engine, PROMPTS[:8], Settings(20)), drawn)
    assert [ids for ids, _ in greedy] == wanted
    assert [ids for ids, _ in chance] != wanted
    assert all(len(ids) == 20 for ids, _ in chance)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"temperature": 0.7, "top_k": 4}, 4),
        ({"temperature": 2.0, "top_p": 0.5}, None),
        ({}, None),
    ],
)
async def test_tokens_are_drawn_as_likely_as_the_model_says(llama, settings, tokens):
    language, model = llama
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[9]])).logits[0, -1] / settings.get("temperature", 1.0)
    if tokens:
        logits[logits < logits.topk(tokens).values[-1]] = -torch.inf
    likely = logits.softmax(-1)
    if top_p := settings.get("top_p"):
        ordered = likely.sort(descending=True)
        kept = int((ordered.values.cumsum(0) < top_p).sum()) + 1
        likely[ordered.indices[kept:]] = 0
        likely /= likely.sum()
    torch.manual_seed(11)
    with continuous(language, model) as engine:
        drawn = await many(engine, [PROMPTS[9]] * 600, Settings(1, samples=True, ignore_eos=True, **settings))
    counts = Counter(ids[0] for ids, _ in drawn)
    assert all(likely[token] > 0 for token in counts)
    for token in likely.topk(3).indices.tolist():
        assert counts[token] / 600 == pytest.approx(float(likely[token]), abs=0.08)


async def test_prompts_longer_than_a_step_are_read_beside_others(llama):
    """Several heads share keys, a prompt needs two steps, and another begins as that one does."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=300,
        max_position_embeddings=2048,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
        **sizes,
    )
    model = LlamaForCausalLM(config).eval()
    long = [(7 * step) % 290 for step in range(700)]
    prompts = [*PROMPTS[:4], long, long[:650], long]
    engine = ContinuousEngine(model, [], 2048, 8192)
    try:
        found = await many(engine, prompts, Settings(12))
        again = await answer(engine, long, Settings(12))
    finally:
        engine.close()
    wanted = [expected(model, each, 12) for each in prompts]
    assert [ids for ids, _ in found] == wanted
    assert again[0] == wanted[-1]


async def test_what_can_never_fit_is_refused_and_disturbs_nobody(llama):
    language, model = llama
    with continuous(language, model, cache_tokens=64) as engine:
        assert engine.capacity == 64
        others = asyncio.ensure_future(many(engine, PROMPTS[:6], Settings(20)))
        await asyncio.sleep(0)
        with pytest.raises(RequestTooLarge) as refused:
            await answer(engine, PROMPTS[12], Settings(64 - 13 + 1))
        assert refused.value.args == (65, 64)
        assert [ids for ids, _ in await others] == [expected(model, each, 20) for each in PROMPTS[:6]]


async def test_what_just_fits_is_answered_also_by_several(llama):
    language, model = llama
    settings = Settings(64 - 13, ignore_eos=True)
    with continuous(language, model, cache_tokens=64) as engine:
        found = await many(engine, [PROMPTS[12]] * 3, settings)
    assert [(len(ids), reason) for ids, reason in found] == [(51, "length")] * 3
    assert found[0] == found[1] == found[2]


async def test_closing_an_answer_early_frees_what_it_holds(llama):
    language, model = llama
    with continuous(language, model, cache_tokens=64) as engine:
        for _ in range(5):
            async with aclosing(engine.submit(PROMPTS[1], Settings(60, ignore_eos=True))) as tokens:
                await anext(tokens)
        closed = time.monotonic()
        manager = engine._manager
        while manager.batch_processor.has_pending_requests():
            assert time.monotonic() - closed < 1
            await asyncio.sleep(0.01)
        assert manager.output_router.result_handlers == {}
        assert engine.status()["answering"] == 0
        assert (await answer(engine, PROMPTS[1], Settings(20)))[0] == expected(model, PROMPTS[1], 20)
        await asyncio.sleep(0.3)
        assert manager.output_router.output_queue.empty()


async def test_after_a_fatal_error_all_are_told_and_the_next_is_answered(llama, monkeypatch):
    language, model = llama
    with continuous(language, model) as engine:
        forward, failing = engine._model.forward, threading.Event()

        def fails_once(*args, **kwargs):
            if failing.is_set():
                failing.clear()
                raise RuntimeError("this step cannot be computed")
            return forward(*args, **kwargs)

        monkeypatch.setattr(engine._model, "forward", fails_once)
        waiting = [asyncio.ensure_future(answer(engine, each, Settings(40, ignore_eos=True))) for each in PROMPTS[:4]]
        await asyncio.sleep(0.05)
        failing.set()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in ended] == [EngineFailed] * 4
        wanted = [expected(model, each, 20) for each in PROMPTS[:4]]
        assert [ids for ids, _ in await many(engine, PROMPTS[:4], Settings(20))] == wanted
        assert engine.status()["rebuilt"] == 1
        assert not engine.lost


async def test_the_end_can_be_ignored(llama):
    language, model = llama
    prompt = next(each for each in PROMPTS if len(expected(model, each, 30)) < 30)
    short = expected(model, prompt, 30)
    with continuous(language, model) as engine:
        assert await answer(engine, prompt, Settings(30)) == (short, "stop")
        ids, reason = await answer(engine, prompt, Settings(30, ignore_eos=True))
    assert (len(ids), reason) == (30, "length")
    assert ids[: len(short) + 1] == [*short, model.generation_config.eos_token_id]


async def test_closing_ends_all_threads(languages):
    before = set(threading.enumerate())
    for name in ("llama", "t5"):
        with generating(*languages[name]) as generator:
            await generator.answer(["a"], {"max_new_tokens": 2})
            assert set(threading.enumerate()) > before
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("asyncio"):  # those belong to the test's event loop
            thread.join(2)
            assert not thread.is_alive(), thread.name


# --- repetition penalty and min_p ------------------------------------------------------------------------------------

PENALTIES = [None, 1.7, 0.6, 1.2, None, 3.0]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
async def test_each_request_has_a_penalty_of_its_own(languages, name):
    language, model = languages[name]
    given = [{} if each is None else {"repetition_penalty": each} for each in PENALTIES * 6][:32]
    wanted = [expected(model, prompt, 30, **each) for prompt, each in zip(PROMPTS, given, strict=True)]
    assert wanted != [expected(model, prompt, 30) for prompt in PROMPTS]
    with continuous(language, model) as engine:
        for _ in range(2):
            asked = zip(PROMPTS, given, strict=True)
            found = await asyncio.gather(*(answer(engine, prompt, Settings(30, others=each)) for prompt, each in asked))
            assert [ids for ids, _ in found] == wanted


async def test_penalties_are_kept_while_requests_are_taken_back_for_want_of_room(llama, monkeypatch):
    language, model = llama
    taken_back, take_back = [], RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        RequestState, "create_equivalent_initial_request", lambda own: taken_back.append(own) or take_back(own)
    )
    given = {"repetition_penalty": 1.7}
    settings = Settings(40, ignore_eos=True, others=given)
    wanted = [expected(model, each, 40, eos_token_id=NO_TOKEN, **given) for each in PROMPTS[:12]]
    with continuous(language, model, cache_tokens=160) as engine:
        found = await many(engine, PROMPTS[:12], settings)
    assert [ids for ids, _ in found] == wanted
    assert taken_back


async def test_penalties_stay_apart_while_another_prompt_is_read_in_steps(llama):
    """Meanwhile a step has more places than there are requests with a new token."""
    language, model = llama
    settings = Settings(30, ignore_eos=True, others={"repetition_penalty": 1.7})
    wanted = [expected(model, prompt, 30, eos_token_id=NO_TOKEN, repetition_penalty=1.7) for prompt in PROMPTS[:6]]
    with continuous(language, model, cache_tokens=8192) as engine:
        async with aclosing(engine.submit(PROMPTS[0], replace(settings, max_new_tokens=4))) as first:
            begun = asyncio.ensure_future(anext(first))
            others = [asyncio.ensure_future(answer(engine, each, settings)) for each in PROMPTS[1:6]]
            ids = [*(await begun).ids]
            reading = asyncio.ensure_future(answer(engine, [7] * 3500, Settings(2)))
            ids += [token async for tokens in first for token in tokens.ids]
        found = [ids, *(each for each, _ in await asyncio.gather(*others))]
        await reading
        repetition = engine._manager.logit_processor._repetition
        marked = [set(repetition._marks[row].nonzero().flatten().tolist()) for row in repetition._rows.values()]
    assert found == [wanted[0][:4], *wanted[1:]]
    for prompt, ids in zip(PROMPTS[:6], found, strict=True):
        assert {*prompt, *ids[:-1]} in marked


async def test_a_token_without_a_score_penalizes_nothing(llama):
    language, model = llama
    larger = LlamaForCausalLM(copy.deepcopy(model.config)).eval()
    larger.load_state_dict(model.state_dict())
    vocabulary = larger.config.vocab_size
    rows = torch.nn.Embedding(vocabulary + 4, larger.config.hidden_size)
    with torch.no_grad():
        rows.weight[:vocabulary] = larger.model.embed_tokens.weight
    larger.model.embed_tokens = rows
    prompt, given = [5, vocabulary + 2, 9], {"repetition_penalty": 1.7}
    with continuous(language, larger) as engine:
        for others in ({}, given):
            settings = Settings(10, ignore_eos=True, others=others)
            assert (await answer(engine, prompt, settings))[0] == expected(
                larger, prompt, 10, eos_token_id=NO_TOKEN, **others
            )


async def test_the_penalty_of_a_model_is_for_requests_that_say_none(llama):
    language, model = llama
    own = twin(model)
    own.generation_config = copy.deepcopy(model.generation_config)
    own.generation_config.update(repetition_penalty=1.7, min_p=1.0)
    text, plain = "the river", {"return_full_text": False, "max_new_tokens": 20}
    for engine in ("auto", "static"):
        with generating(language, own, engine) as generator:
            assert len(generator.status()["engines"]) == (2 if engine == "auto" else 1)
            penalized, chosen, neutral = await asyncio.gather(
                generator.answer([text], {"do_sample": False, **plain}),
                generator.answer([text], {**plain, "temperature": 2.0}),  # min_p leaves the likeliest token alone
                generator.answer([text], {"do_sample": False, "repetition_penalty": 1.0, **plain}),
            )
        ids = language.tokenizer(text)["input_ids"]
        written = partial(language.tokenizer.decode, skip_special_tokens=True)
        said = [written(ids + expected(each, ids, 20)).removeprefix(text) for each in (own, model)]
        assert penalized == chosen == said[:1]
        assert neutral == said[1:] != penalized


async def test_a_model_that_asks_for_more_than_continuous_batching_does_is_answered_in_static_batches(llama, caplog):
    language, model = llama
    own = twin(model)
    own.generation_config = copy.deepcopy(model.generation_config)
    own.generation_config.update(no_repeat_ngram_size=2)
    with generating(language, own) as generator:
        assert [each["engine"] for each in generator.status()["engines"]] == ["static"]
    assert "its own configuration asks for no_repeat_ngram_size" in caplog.text
    with pytest.raises(HandlerInvalid, match="asks for no_repeat_ngram_size"), generating(language, own, "continuous"):
        pass


def test_what_changes_nothing_is_no_reason_for_static_batches():
    assert beyond(GenerationConfig()) == []
    idle = {name: value for name, value in _BEYOND.items() if value is not None}
    assert beyond(GenerationConfig(**idle)) == []
    assert beyond(GenerationConfig(typical_p=0.9, forced_bos_token_id=0)) == ["forced_bos_token_id", "typical_p"]


def test_every_setting_of_transformers_that_changes_scores_is_known():
    """Compare with where Transformers turns a configuration into processors."""
    read = set(re.findall(r"generation_config\.([a-z]\w*)", inspect.getsource(GenerationMixin._get_logits_processor)))
    common = {"do_sample", "temperature", "top_k", "top_p", "num_beams", "max_length", "use_cache"}
    harmless = {"remove_invalid_values", "renormalize_logits"}  # the order of scores stays as it is
    assert read - common - harmless - DOES == set(_BEYOND)


def state(name, penalty, *tokens):
    asked = {} if penalty is None else {"repetition_penalty": penalty}
    made = SimpleNamespace(
        request_id=name, initial_tokens=list(tokens), generated_tokens=[], logit_processor_kwargs=asked
    )
    return SimpleNamespace(state=made)


def test_rows_of_requests_that_have_ended_are_used_again():
    repetition = Repetition(8, 2, "cpu")
    scores = torch.tensor([[1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0]] * 2)

    def step(*states, tokens):
        rows = repetition.prepare_tensor_args(list(states))
        repetition.mark(torch.tensor(tokens), rows)
        return (repetition(scores[: len(states)], rows) / scores[: len(states)]).tolist()

    for turn in range(20):
        one, other = state(f"a{turn}", 2.0, 0, 1), state(f"b{turn}", None, 2, 3)
        assert step(one, other, tokens=[1, 3]) == [[0.5, 2, 1, 1, 1, 1, 1, 1], [1] * 8]
        assert step(other, one, tokens=[4, 5]) == [[1] * 8, [0.5, 2, 1, 1, 1, 2, 1, 1]]
    kept = state("kept", 2.0, 7)
    assert step(kept, tokens=[7]) == [[1] * 7 + [2]]
    for turn in range(3):
        step(state(f"c{turn}", 2.0, 0), state(f"d{turn}", 2.0, 1), tokens=[0, 1])
    kept.state.generated_tokens = [6]  # its row was given away, and it comes back
    assert step(kept, tokens=[6]) == [[1] * 6 + [0.5, 2]]


def test_places_that_nobody_has_in_a_step_mark_nothing():
    one, other = state("one", 2.0, 0), state("other", 2.0, 1)
    for each in (one, other):
        each.has_new_token = True
    made, storage = processors(8, 4, "cpu"), torch.full((6, 4), 3, dtype=torch.int32)
    made.prepare_tensor_args([one, other], storage)
    made.prepare_tensor_args([other], storage)  # it has the first place now
    scores = torch.ones((4, 8))
    found = made(torch.tensor([2, 5, 6, 7]), scores, storage)
    assert found[0].tolist() == [1, 0.5, 0.5, 1, 1, 1, 1, 1]
    made.prepare_tensor_args([other, one], storage)
    found = made(torch.tensor([2, 0, 6, 7]), scores, storage)
    assert found[:2].tolist() == [[1, 0.5, 0.5, 1, 1, 1, 1, 1], [0.5, 1, 1, 1, 1, 1, 1, 1]]


def test_what_a_gpu_computes_of_penalties_is_the_same():
    """A GPU takes all rows, also those of requests without a penalty."""
    repetition = Repetition(50, 8, "cpu")
    chance = torch.Generator().manual_seed(0)
    prompts = torch.randint(50, (8, 5), generator=chance).tolist()
    states = [state(str(each), PENALTIES[each % 6], *prompts[each]) for each in range(8)]
    rows = repetition.prepare_tensor_args(states)
    repetition.mark(torch.tensor([prompt[-1] for prompt in prompts]), rows)
    scores = torch.randn((8, 50), generator=chance)
    found = repetition(scores, rows)
    assert torch.equal(found, repetition._penalize(scores, rows.long()))
    for place, each in enumerate(states):
        penalty = each.state.logit_processor_kwargs.get("repetition_penalty", 1.0)
        own = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompts[place]]), scores[place : place + 1])
        assert torch.equal(found[place : place + 1], own)


def test_min_p_leaves_what_transformers_leaves():
    scores = torch.randn((6, 50), generator=torch.Generator().manual_seed(0)) * 3
    least = [0.0, 0.05, 0.3, 0.0, 1.0, 0.7]
    states = [SimpleNamespace(state=SimpleNamespace(logit_processor_kwargs={"min_p": each})) for each in least]
    processor = _MinP()
    for found in (
        processor(scores, processor.prepare_tensor_args(states)),
        super(_WhereAsked, processor).__call__(scores, processor.prepare_tensor_args(states)),
    ):
        for place, each in enumerate(least):
            own = MinPLogitsWarper(each)(None, scores[place : place + 1])
            assert torch.equal(found[place : place + 1], own)


# --- static batches --------------------------------------------------------------------------------------------------


async def test_requests_of_different_settings_do_not_mix(llama):
    language, model = llama
    settings = [
        Settings(15),
        Settings(15, others={"repetition_penalty": 1.7}),
        Settings(15, others={"min_new_tokens": 15}),
        Settings(15, others={"num_beams": 3}),
        Settings(15, ignore_eos=True),
        Settings(6),
    ]
    asked = [(prompt, settings[place % len(settings)]) for place, prompt in enumerate(PROMPTS[:18])]
    wanted = []
    for prompt, each in asked:
        end = {"eos_token_id": NO_TOKEN} if each.ignore_eos else {}
        wanted.append(expected(model, prompt, each.max_new_tokens, **each.others, **end))
    with static(language, model) as engine:
        found = await asyncio.gather(*(answer(engine, *each) for each in asked))
    assert [ids for ids, _ in found] == wanted


async def test_what_continuous_batching_cannot_do_goes_elsewhere(llama):
    language, model = llama
    with continuous(language, model) as engine:
        assert engine.takes(Settings(5, samples=True, top_k=3, top_p=0.9, temperature=0.3, ignore_eos=True))
        assert not engine.takes(Settings(5, samples=True, seed=1))
        assert not engine.takes(Settings(5, logprobs=0))
        assert engine.takes(Settings(5, others={"repetition_penalty": 1.2, "min_p": 0.1}))
        assert not engine.takes(Settings(5, others={"repetition_penalty": 1.2, "num_beams": 2}))


async def test_a_seed_repeats_an_answer_whoever_else_asks(llama):
    language, model = llama
    asked = Settings(20, samples=True, seed=3, ignore_eos=True)
    with static(language, model) as engine:
        first = await answer(engine, PROMPTS[4], asked)
        among = await asyncio.gather(
            answer(engine, PROMPTS[4], asked),
            many(engine, PROMPTS[:6], Settings(20, samples=True, ignore_eos=True)),
            answer(engine, PROMPTS[4], Settings(20, samples=True, seed=4, ignore_eos=True)),
        )
    assert among[0] == first
    assert among[2] != first


@pytest.mark.parametrize("beams", [{}, {"num_beams": 2}])
async def test_a_seed_repeats_an_answer_while_others_seed_the_same_process(llama, beams):
    language, model = llama
    asked = Settings(20, samples=True, temperature=1.5, seed=3, ignore_eos=True, others=beams)
    drawing = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "eos_token_id": NO_TOKEN}
    torch.manual_seed(3)
    wanted = expected(model, PROMPTS[4], 20, **drawing, **beams)
    ended = threading.Event()

    def disturb():
        while not ended.wait(0.0005):
            torch.manual_seed(0)

    with static(language, model) as engine, ThreadPoolExecutor(1) as pool:
        pool.submit(disturb)
        try:
            found = [await answer(engine, PROMPTS[4], asked) for _ in range(5)]
        finally:
            ended.set()
    assert found == [(wanted, "length")] * 5


async def test_an_answer_ends_where_the_models_own_settings_end_it(languages, monkeypatch):
    language, model = languages["gpt2"]
    monkeypatch.setattr(model.generation_config, "max_time", 1e-9)
    with static(language, model) as engine:
        found = await many(engine, PROMPTS[:3], Settings(20, ignore_eos=True))
    assert [(len(ids), reason) for ids, reason in found] == [(1, "length")] * 3


@pytest.mark.parametrize("own", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}])
async def test_a_model_that_would_guess_several_tokens_at_once_answers_many_requests(llama, tmp_path, own):
    wanted = [expected(llama[1], each, 20) for each in PROMPTS[:5]]
    folder = language_models.llama(tmp_path)
    config = GenerationConfig.from_pretrained(folder)
    config.update(**own)
    config.save_pretrained(folder)
    assert GenerationConfig.from_pretrained(folder).to_dict().items() >= own.items()
    language = Language(Source(folder, FP32, trusted=False))
    with static(language, language.weights()) as engine:
        assert [ids for ids, _ in await many(engine, PROMPTS[:5], Settings(20))] == wanted


def test_whatever_draws_does_so_from_the_seed():
    def drawn():
        chances = torch.rand(4).softmax(0)
        return [
            torch.multinomial(chances, 2),
            chances.multinomial(2),
            torch.rand_like(chances),
            torch.randn(3),
            torch.empty(3).exponential_(),
            torch.bernoulli(chances),
        ]

    with seeded(5):
        first = drawn()
    torch.manual_seed(5)
    assert all(map(torch.equal, first, drawn()))
    torch.manual_seed(6)
    with seeded(5):
        assert all(map(torch.equal, first, drawn()))
        given = torch.Generator().manual_seed(7)
        own = torch.rand(3, generator=given)
    assert torch.equal(own, torch.rand(3, generator=given.manual_seed(7)))
    after = torch.rand(3)
    torch.manual_seed(6)
    assert torch.equal(after, torch.rand(3))


async def test_log_probabilities_are_those_of_the_model(llama):
    language, model = llama
    settings, told = Settings(8, logprobs=2, ignore_eos=True), []
    with static(language, model) as engine:
        found = await asyncio.gather(*(_all(engine.submit(each, settings)) for each in PROMPTS[:3]))
    for prompt, pieces in zip(PROMPTS, found, strict=False):
        tokens = Tokens(
            tuple(each.ids[0] for each in pieces),
            pieces[-1].finish_reason,
            tuple(each.logprobs[0] for each in pieces),
            tuple(each.likeliest[0] for each in pieces),
        )
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens.ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1)
        assert tokens.logprobs == pytest.approx(
            [float(logprobs[at, each]) for at, each in enumerate(tokens.ids)], abs=1e-4
        )
        for at, likeliest in enumerate(tokens.likeliest):
            values, ids = logprobs[at].topk(2)
            assert [each.token for each in likeliest] == ids.tolist()
            assert [each.logprob for each in likeliest] == pytest.approx(values.tolist(), abs=1e-4)
        told.append(tokens.finish_reason)
    assert told == ["length"] * 3


async def _all(tokens):
    return [each async for each in tokens]


async def test_an_encoder_decoder_answers_in_batches_as_it_does_alone(languages):
    language, model = languages["t5"]
    texts = ["The river rose.", "A boat", "naïve words came down the river during the night", "日本語"]
    with generating(language, model) as generator:
        alone = [(await generator.answer([each], {"max_new_tokens": 12, "temperature": 0}))[0] for each in texts]
        together = await asyncio.gather(
            *(generator.answer([each], {"max_new_tokens": 12, "temperature": 0}) for each in texts)
        )
    assert [texts for (texts,) in together] == alone
    assert len(set(alone)) > 1


# --- texts -----------------------------------------------------------------------------------------------------------

GREEDY = {"temperature": 0, "max_new_tokens": 24, "return_full_text": False, "ignore_eos": True}


async def streamed(generator, given, parameters):
    return [each async for each in generator.generate(given, parameters)]


async def test_a_stop_of_several_tokens_ends_an_answer_before_it_also_piece_by_piece(llama):
    language, model = llama
    with generating(language, model) as generator:
        (whole,) = await generator.answer(["The river"], GREEDY)
        stop = whole[9:13]
        before = whole[: whole.index(stop)]
        assert len(language.tokenizer(stop, add_special_tokens=False)["input_ids"]) > 1
        assert await generator.answer(["The river"], GREEDY | {"stop": ["nowhere", stop]}) == [before]
        chunks = await streamed(generator, "The river", GREEDY | {"stop": [stop]})
    assert "".join(each.text for each in chunks) == before
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].generated_tokens < 24


@pytest.mark.parametrize("name", ["llama", "gpt2"])
async def test_characters_of_several_tokens_come_whole(languages, name):
    language, model = languages[name]
    given = "Größe, 日本語 and 🙂"
    with generating(language, model) as generator:
        (whole,) = await generator.answer([given], GREEDY)
        chunks = await streamed(generator, given, GREEDY)
    ids = language.tokenizer(given)["input_ids"]
    added = expected(model, ids, 24, eos_token_id=NO_TOKEN)
    plain = language.tokenizer.decode([*ids, *added], skip_special_tokens=True)
    assert "".join(each.text for each in chunks) == whole
    assert plain.endswith(whole)
    assert len(chunks) > 5
    assert chunks[-1].generated_tokens == 24


async def test_a_handler_called_directly_answers_as_the_engines_do(llama):
    language, model = llama
    inputs, long = ["The river", "he"], GREEDY | {"max_new_tokens": 40}
    with generating(language, model) as generator:
        wanted = await generator.answer(inputs, long)
        assert wanted != await generator.answer(inputs, long | {"ignore_eos": False})
    requests = [{"input": each, "parameters": long} for each in inputs]
    assert TextGeneration(language, model).answer(requests) == wanted


async def test_several_answers_to_one_input_differ(llama):
    with generating(*llama) as generator:
        asked = {"n": 3, "max_new_tokens": 12, "temperature": 1.5, "return_full_text": False, "ignore_eos": True}
        first, second = await generator.answer(["The river", "A boat"], asked)
    assert len(set(first)) == len(set(second)) == 3


async def test_beams_of_one_search_are_all_returned(llama):
    language, model = llama
    asked = {"n": 2, "num_beams": 2, "do_sample": False, "max_new_tokens": 8, "return_full_text": False}
    with generating(language, model) as generator:
        (texts,) = await generator.answer(["The river"], asked)
    ids = language.tokenizer("The river")["input_ids"]
    with torch.inference_mode():
        rows = model.generate(
            torch.tensor([ids]), max_new_tokens=8, num_beams=2, num_return_sequences=2, do_sample=False
        )
    whole = [language.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert len(texts) == 2
    assert all(each.endswith(text) for each, text in zip(whole, texts, strict=True))


async def test_rows_that_would_leave_the_context_together_are_computed_apart(languages):
    language, model = languages["gpt2"]  # whose positions end with its context
    with static(language, model) as engine:
        asked = (PROMPTS[5] * 10, Settings(4, ignore_eos=True)), (PROMPTS[1], Settings(62, ignore_eos=True))
        together = await asyncio.gather(*(answer(engine, *each) for each in asked))
        assert together == [await answer(engine, *each) for each in asked]
    assert [len(ids) for ids, _ in together] == [4, 62]


async def test_an_encoder_decoder_ends_with_its_context_too(languages):
    language, model = languages["t5"]
    with generating(language, model) as generator:
        asked = {"max_new_tokens": 10**9, "ignore_eos": True, "do_sample": False}
        chunks = [chunk async for chunk in generator.generate("The river", asked)]
    assert (chunks[-1].generated_tokens, chunks[-1].finish_reason) == (language.context, "length")


@pytest.mark.parametrize("engine", ["auto", "static"])
async def test_next_to_no_temperature_is_none(llama, engine):
    language, model = llama
    with generating(language, model, engine) as generator:
        cold = await generator.answer(["The river"], {"temperature": 1e-38, "seed": 1, "max_new_tokens": 8})
        assert cold == await generator.answer(["The river"], {"do_sample": False, "max_new_tokens": 8})


@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1e-38},
        {"length_penalty": 1e308, "num_beams": 2},
        {"logprobs": 1, "num_beams": 2},
        {"num_return_sequences": 64},
    ],
)
async def test_what_would_only_fail_is_refused(llama, parameters):
    language, model = llama
    with generating(language, model) as generator, pytest.raises(InvalidRequest):
        await generator.answer(["The river"] * 17, parameters)


async def test_a_seed_repeats_an_answer_beside_others_that_are_drawn(llama):
    language, model = llama
    asked = {"seed": 5, "temperature": 1.5, "max_new_tokens": 16, "ignore_eos": True}
    with generating(language, model) as generator:
        (alone,) = await generator.answer(["The river"], asked)
        others = [generator.answer(["night"], {"temperature": 1.5, "max_new_tokens": 40}) for _ in range(4)]
        drawn = await asyncio.gather(*others, *(generator.answer(["The river"], asked) for _ in range(4)))
    assert [text for (text,) in drawn[4:]] == [alone] * 4


def byte_fallback():
    """A tokenizer that writes what it does not know as bytes, as Llama 2 and Mistral do."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    vocabulary |= {character: len(vocabulary) + place for place, character in enumerate("▁abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("prompt", ["", "hi", "hi 世界你好", "世界"])
@pytest.mark.parametrize("text", ["你好世界你好x", "日本語日本語 and ภาษาไทย 🙂🙂 done", "héllo"])
def test_characters_of_several_bytes_survive_token_by_token(prompt, text):
    tokenizer = byte_fallback()
    before = tokenizer(prompt)["input_ids"] if prompt else []
    written = TokensAsText(tokenizer, before)
    pieces = [written.add([token]) for token in tokenizer(prompt + text)["input_ids"][len(before) :]]
    assert "".join(pieces) + written.rest() == text


async def test_a_cancellation_is_never_lost_whenever_it_comes():
    async def step():
        await asyncio.sleep(0)

    async def work():
        while True:
            await within(5, step())

    for ticks in range(24):
        working = asyncio.ensure_future(work())
        for _ in range(20 + ticks):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait({working}, timeout=1)
        assert working.cancelled()


async def test_what_takes_too_long_is_ended():
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await within(0.01, work())
    assert ended.is_set()
