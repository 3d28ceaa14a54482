"""Models divided over several processes: real processes of Ray, each with a part of every layer."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone

import psutil
import pytest
import ray
import requests
import torch
from ray import serve
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, Phi3Config

from registry_serve import deployment_from_handler, mii
from registry_serve.errors import ConfigurationError, DeploymentNotFound, HandlerInvalid
from registry_serve.generation.language import Language
from registry_serve.generation.memory import bytes_per_token
from registry_serve.handlers.huggingface import HuggingFaceHandler
from registry_serve.resources import Resources, room
from registry_serve.rollout.applications import build
from registry_serve.rollout.code import Code
from registry_serve.rollout.records import Order, Record
from tests import language_models
from tests.language_models import one_thread, saved, sentence_tokenizer  # noqa: F401
from tests.mlflow_server import free_port

PROMPTS = ["The river", "A boat came down the river and", "night", "Größe", "down", "The river rose during", "a", "b"]
GREEDY = {"do_sample": False, "max_new_tokens": 24, "return_full_text": False}
#: Two replicas of two processes fit beside whatever else a test has left on the cluster.
SMALL = {"ray_actor_options": {"num_cpus": 0.5}, "placement_group_bundles": [{"CPU": 0.5}] * 2}
#: How much longer the first process takes to load its part, where another is to end meanwhile.
SLOWER_S = 3
#: What Serve itself answers those whose requests are at a replica in the moment in which it ends: status and text.
BY_SERVE = {(500, "Internal Server Error")}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return language_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(llama):
    """What one process generates."""
    return generated(llama)


def generated(llama, **options):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=24, **options)[0]
        both = tokenizer.decode(made, skip_special_tokens=True)
        texts.append(both.removeprefix(tokenizer.decode(ids[0], skip_special_tokens=True)))
    return texts


@pytest.fixture(scope="module")
def divided(cluster, llama):
    """Two replicas of two processes each; its address."""
    made = deployment_from_handler(
        model_parameters={"task": "text-generation", "model_name_or_path": llama}, tensor_parallel=2
    )
    serve.run(made.options(num_replicas=2, **SMALL).bind(), name="divided", route_prefix="/divided")
    url = f"{cluster.address}/divided"
    yield url
    pids = [pid for each in replicas(url, 1).values() for pid in each]
    serve.delete("divided")
    end(pids)


def ask(url, prompt="The river", **parameters):
    body = {"inputs": [prompt], "parameters": {**GREEDY, **parameters}}
    return requests.post(f"{url}/predict", json=body, timeout=60)


def told(answer):
    """Return an answer's status, and its error's code; the text of one that is not JSON, as Serve's own."""
    if "json" not in answer.headers.get("Content-Type", ""):
        return answer.status_code, answer.text
    return answer.status_code, answer.json().get("code")


def replicas(url, wanted=2, timeout_s=60):
    """Return each replica's processes by its id, once there are so many replicas that answer."""
    found, until = {}, time.monotonic() + timeout_s
    while len(found) < wanted and time.monotonic() < until:
        time.sleep(0.05)
        told = requests.get(f"{url}/model", timeout=60).json()
        (version,) = told["versions"]
        (engine,) = version["loaded"]["generation"]["engines"]
        found[told["replica"]["id"]] = engine["pids"]
    assert len(found) >= wanted
    return found


def end(pids, timeout_s=30):
    """Wait until processes are gone."""
    wait_until(lambda: not any(map(lives, pids)), timeout_s)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, timeout_s=30):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.cluster
@pytest.mark.slow
def test_persistent_deployments_have_divided_replicas(cluster, llama, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(tmp_path))
    client = mii.serve(
        llama, deployment_name="divided-twice", replica_num=2, tensor_parallel=2, port_number=free_port()
    )
    try:
        for _ in range(2):
            texts = [each.generated_text for each in client(PROMPTS, do_sample=False, max_new_tokens=24)]
            assert texts == alone
        told = client.status()["replicas"]
        assert [each["requests"] for each in told] == [1, 1]
        first = [each["process"] for each in told]
        others = [pid for pid, name in workers(first[0]) if name.startswith("ray::Rank")]
        assert len({*first, *others}) == 4
    finally:
        client.terminate_server()
    end([*first, *others])
    with pytest.raises(DeploymentNotFound):
        mii.client("divided-twice")


def workers(pid):
    """Return what Ray runs beside a process: pids and names."""
    found = []
    for each in psutil.Process(pid).parent().children():
        with suppress(psutil.NoSuchProcess):
            found.append((each.pid, "".join(each.cmdline()[:1])))
    return found


@pytest.mark.cluster
def test_several_processes_generate_what_one_does_in_every_replica(divided, alone):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: ask(divided, prompt).json()["outputs"], PROMPTS * 4))
    assert answers == [[text] for text in alone * 4]
    pids = [pid for each in replicas(divided).values() for pid in each]
    assert len(set(pids)) == 4
    assert all(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.cluster
def test_all_processes_draw_the_same_token_by_chance(divided, llama):
    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama)
    chances = {"do_sample": True, "top_k": 2, "top_p": 1.0, "temperature": 5.0, "max_new_tokens": 10}
    texts = {ask(divided, **chances).json()["outputs"][0] for _ in range(6)}
    assert len(texts) > 3
    # Were one process to go on with another token than the rest, what follows would not be likely for any prompt.
    for text in texts:
        assert drawn(tokenizer, model, tokenizer("The river")["input_ids"], text)


def drawn(tokenizer, model, ids, text):
    """Whether a text can come from always taking one of the two likeliest tokens."""
    found = [(list(ids), "")]
    while found:
        known, written = found.pop()
        if written == text:
            return True
        if len(known) == len(ids) + 10:
            continue
        likeliest = model(torch.tensor([known])).logits[0, -1].topk(2).indices.tolist()
        for token in likeliest:
            longer = tokenizer.decode([*known, token], skip_special_tokens=True)
            longer = longer.removeprefix(tokenizer.decode(ids, skip_special_tokens=True))
            if text.startswith(longer):
                found.append(([*known, token], longer))
    return False


@pytest.mark.cluster
def test_what_only_one_process_can_do_is_refused(divided):
    for name, others in {"seed": {"do_sample": True}, "num_beams": {}, "no_repeat_ngram_size": {}}.items():
        answer = ask(divided, **others, **{name: 2}, repetition_penalty=1.2)
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["message"].endswith(f" cannot do: {name}")
    assert ask(divided).status_code == 200


@pytest.mark.cluster
def test_several_processes_penalize_what_one_does(divided, llama, alone):
    penalized = generated(llama, repetition_penalty=1.7)
    assert penalized != alone
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: ask(divided, prompt, repetition_penalty=1.7), PROMPTS * 2))
    assert [answer.json()["outputs"] for answer in answers] == [[text] for text in penalized * 2]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_requests_and_its_replica_comes_back(divided, alone):
    before = replicas(divided)
    killed, (first, second) = next(iter(before.items()))
    answers, going = [], [True]

    def ask_on():
        while going[0]:
            answers.append(told(ask(divided)))

    def so_many_more(wanted, so_far):
        return lambda: len(answers) >= so_far + wanted or any(each.done() for each in asking)

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask_on) for _ in range(6)]
        try:
            wait_until(so_many_more(12, 0))
            os.kill(second, signal.SIGKILL)
            end([first, second])
            wait_until(so_many_more(12, len(answers)))
        finally:
            going[0] = False
        for each in asking:
            each.result()
    assert set(answers) - BY_SERVE == {(200, None), (503, "model_process_died")}
    now = replicas(divided)
    assert killed not in now
    assert not {first, second} & {pid for each in now.values() for pid in each}
    assert [ask(divided, prompt).json()["outputs"] for prompt in PROMPTS] == [[text] for text in alone]


@pytest.mark.cluster
def test_a_process_that_ends_while_it_loads_is_told_and_nobody_waits_for_it(cluster, llama):
    first = First.remote()
    parent = first.parent.remote()
    loading = first.load.remote(llama)
    kill_next_child(ray.get(parent))
    began = time.monotonic()
    with pytest.raises(HandlerInvalid, match="rank 1 ended while it loaded its part, perhaps for want of memory"):
        ray.get(loading, timeout=30)
    assert time.monotonic() - began < SLOWER_S + 10


@ray.remote(num_cpus=0)
class First:
    """The first process of a model, without a deployment. It reads its part more slowly than the others theirs."""

    def parent(self):
        return os.getppid()

    def load(self, folder):
        weights = Language.weights

        def slowly(language, **options):
            time.sleep(SLOWER_S)  # all others wait for it, so that there is time to end one that loads
            return weights(language, **options)

        Language.weights = slowly
        HuggingFaceHandler(task="text-generation", model_name_or_path=folder, tensor_parallel=2)


def kill_next_child(parent, timeout_s=150):
    """Kill the next process of a cluster that begins to load a part."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        for each in psutil.Process(parent).children():
            with suppress(psutil.NoSuchProcess):
                if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::Rank.load"):
                    each.kill()
                    return
        time.sleep(0.02)
    raise AssertionError("there was none")


@pytest.mark.cluster
def test_no_process_outlives_the_one_that_started_it(divided):
    pids = next(iter(replicas(divided, 1).values()))
    os.kill(pids[0], signal.SIGKILL)
    end(pids)


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


def test_what_a_divided_model_cannot_do_is_refused(llama):
    for settings, reason in [
        ({"engine": "static"}, "tensor_parallel is for text-generation, with the engine auto or continuous"),
        ({"task": "feature-extraction"}, "tensor_parallel is for text-generation"),
        ({"autocast_dtype": "bf16"}, "autocast_dtype is set"),
    ]:
        with pytest.raises(HandlerInvalid, match=reason):
            HuggingFaceHandler(
                **{"task": "text-generation", "model_name_or_path": llama, "tensor_parallel": 2, **settings}
            )
    with pytest.raises(ConfigurationError, match="not in model_parameters"):
        deployment_from_handler(
            model_parameters={"task": "text-generation", "model_name_or_path": llama, "tensor_parallel": 2}
        )
    with pytest.raises(ConfigurationError, match="must be a whole number above 0, not 0"):
        deployment_from_handler(model_parameters={"task": "text-generation"}, tensor_parallel=0)


@pytest.mark.parametrize(("kind", "share"), [(LlamaConfig, 0.5), (Phi3Config, 1)])
def test_each_process_keeps_the_keys_of_its_own_heads_in_memory(kind, share):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind(hidden_size=64, num_hidden_layers=1, num_attention_heads=4))
    whole = bytes_per_token(model)
    model._tp_size = 2  # as Transformers sets it when it divides a model
    assert bytes_per_token(model) == whole * share


def test_each_process_has_a_bundle_of_its_own_on_one_node():
    assert Resources(cpus=2).placement() == {}
    assert Resources(processes=2).placement() == {
        "placement_group_bundles": [{"CPU": 1.0}] * 2,
        "placement_group_strategy": "STRICT_PACK",
    }
    on_gpus = Resources(cpus=8, gpus=4, gpu_type="a100_80gb", processes=4)
    bundle = {"CPU": 2.0, "GPU": 1.0, "accelerator_type:A100": 0.001}
    assert on_gpus.placement()["placement_group_bundles"] == [bundle] * 4
    assert on_gpus.actor_options() == {"num_cpus": 2.0, "num_gpus": 1.0, "accelerator_type": "A100"}
    assert room([{"GPU": 8.0, "accelerator_type:A100": 1.0}, {"GPU": 3.0}], on_gpus) == 2
    with pytest.raises(ConfigurationError, match="gpus must be 4 or 0, not 1"):
        Resources(gpus=1, processes=4)


@pytest.mark.parametrize("cpus", [0, 0.0001])
def test_processes_that_take_nothing_are_refused_since_no_place_can_be_reserved_for_them(cpus):
    with pytest.raises(ConfigurationError, match=f"cpus must be above 0, or not set, not {cpus:g}"):
        Resources(cpus=cpus, processes=2)
    assert Resources(cpus=cpus).actor_options() == {"num_cpus": cpus}
    on_gpus = Resources(cpus=cpus, gpus=2, processes=2)
    assert [each["GPU"] for each in on_gpus.placement()["placement_group_bundles"]] == [1, 1]


def test_a_deployment_file_asks_for_it_among_the_models_parameters():
    made = build(record_of(2), None)
    assert made.resources == Resources(cpus=3, processes=2)
    assert made.deployment.ray_actor_options["num_cpus"] == 1.5
    with pytest.raises(ConfigurationError, match=r"model_parameters\.tensor_parallel must be a whole number above 0"):
        build(record_of("two"), None)


def record_of(tensor_parallel):
    parameters = {"task": "text-generation", "model_name_or_path": "m", "tensor_parallel": tensor_parallel}
    file = {"name": "divided", "compute": {"cpus": 3}, "model": {"model_parameters": parameters}}
    now = datetime.now(timezone.utc)
    return Record(name="divided", file=file, folder="/", order=Order(), code=Code(), created=now, deployed=now)


def neox(folder):
    tokenizer = sentence_tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    return saved(folder, tokenizer, GPTNeoXForCausalLM(config))
