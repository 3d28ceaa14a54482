"""Models divided over several processes: real processes of Ray, each with a part of every layer."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
import torch
from ray import serve
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from registry_serve import deployment_from_handler
from registry_serve.errors import ConfigurationError, HandlerInvalid
from registry_serve.handlers.huggingface import HuggingFaceHandler
from registry_serve.resources import Resources
from tests import language_models
from tests.language_models import saved, sentence_tokenizer

PROMPTS = ["The river", "A boat came down the river and", "night", "Größe", "down", "The river rose during", "a", "b"]
GREEDY = {"do_sample": False, "max_new_tokens": 24, "return_full_text": False}
#: Two replicas of two processes fit beside whatever else a test has left on the cluster.
SMALL = {"ray_actor_options": {"num_cpus": 0.5}, "placement_group_bundles": [{"CPU": 0.5}] * 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return language_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(llama):
    """What one process generates."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=24)[0]
        both = tokenizer.decode(made, skip_special_tokens=True)
        texts.append(both.removeprefix(tokenizer.decode(ids[0], skip_special_tokens=True)))
    return texts


@pytest.fixture(scope="module")
def divided(cluster, llama):
    """Two replicas of two processes each; its address."""
    made = deployment_from_handler(
        model_parameters={"task": "text-generation", "model_name_or_path": llama}, tensor_parallel=2
    )
    began = time.monotonic()
    serve.run(made.options(num_replicas=2, **SMALL).bind(), name="divided", route_prefix="/divided")
    print(f"deployed in {time.monotonic() - began:.1f} s")
    yield f"{cluster.address}/divided"
    serve.delete("divided")


def ask(url, prompt="The river", **parameters):
    body = {"inputs": [prompt], "parameters": {**GREEDY, **parameters}}
    return requests.post(f"{url}/predict", json=body, timeout=60)


def replicas(url, wanted=2, timeout_s=60):
    """Return each replica's processes by its id, once there are so many replicas that answer."""
    found, until = {}, time.monotonic() + timeout_s
    while len(found) < wanted and time.monotonic() < until:
        told = requests.get(f"{url}/model", timeout=60).json()
        (version,) = told["versions"]
        (engine,) = version["loaded"]["generation"]["engines"]
        found[told["replica"]["id"]] = engine["pids"]
    assert len(found) >= wanted
    return found


def end(pids, timeout_s=10):
    """Wait until processes are gone; return after how many seconds."""
    began = time.monotonic()
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < began + timeout_s
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.cluster
def test_several_processes_generate_what_one_does_in_every_replica(divided, alone):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: ask(divided, prompt).json()["outputs"], PROMPTS * 4))
    assert answers == [[text] for text in alone * 4]
    pids = [pid for each in replicas(divided).values() for pid in each]
    assert len(set(pids)) == 4
    assert all(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.cluster
def test_what_only_one_process_can_do_is_refused(divided):
    for name, others in {"seed": {"do_sample": True}, "num_beams": {}, "repetition_penalty": {}}.items():
        answer = ask(divided, **others, **{name: 2})
        assert answer.status_code == 422
        assert name in str(answer.json()["errors"])
    assert ask(divided).status_code == 200


@pytest.mark.cluster
def test_a_process_that_is_killed_fails_its_requests_and_its_replica_comes_back(divided, alone):
    before = replicas(divided)
    (first, second), *_ = before.values()
    statuses, going = [], [True]

    def ask_on():
        while going[0]:
            answer = ask(divided)
            statuses.append((answer.status_code, answer.json().get("code")))

    with ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            pool.submit(ask_on)
        time.sleep(1)
        began = time.monotonic()
        os.kill(second, signal.SIGKILL)
        gone = end([first, second])
        for each in before:
            if before[each] == [first, second]:
                killed = each
        while killed in (now := replicas(divided)) or len(now) < 2:
            assert time.monotonic() < began + 60
        back = time.monotonic() - began
        going[0] = False
    print(f"gone after {gone:.1f} s, back after {back:.1f} s, {len(statuses)} answers")
    assert set(statuses) == {(200, None), (503, "model_process_died")}
    assert statuses[-1] == (200, None)
    assert not {first, second} & {pid for each in now.values() for pid in each}
    assert [ask(divided, prompt).json()["outputs"] for prompt in PROMPTS] == [[text] for text in alone]


@pytest.mark.cluster
def test_no_process_outlives_the_one_that_started_it(divided):
    pids = next(iter(replicas(divided).values()))
    os.kill(pids[0], signal.SIGKILL)
    print(f"gone after {end(pids):.1f} s")


def test_models_that_cannot_be_divided_are_refused_by_name(tmp_path):
    for folder, ranks, reason in [
        (language_models.gpt2(tmp_path / "gpt2"), 2, "Transformers has no plan for GPT2LMHeadModel"),
        (language_models.t5(tmp_path / "t5"), 2, "it has an encoder"),
        (language_models.llama(tmp_path / "llama"), 3, "it has 2 attention heads, which 3 does not divide"),
        (neox(tmp_path / "neox"), 2, "cannot follow how Transformers divides the attention of GPTNeoXForCausalLM"),
    ]:
        with pytest.raises(HandlerInvalid) as refused:
            HuggingFaceHandler(task="text-generation", model_name_or_path=folder, tensor_parallel=ranks)
        assert repr(folder) in str(refused.value)
        assert reason in str(refused.value)


def neox(folder):
    tokenizer = sentence_tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    return saved(folder, tokenizer, GPTNeoXForCausalLM(config))
