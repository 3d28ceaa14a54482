"""Persistent deployments on a real cluster in the background, from separate processes."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from textwrap import dedent

import grpc
import psutil
import pytest
import requests
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from registry_serve import cli, mii
from registry_serve.errors import (
    ConfigurationError,
    DeploymentUnavailable,
    InvalidRequest,
    TooManyTokens,
    UnknownArgument,
)
from registry_serve.persistent import records, wire
from registry_serve.persistent.ending import terminate
from registry_serve.rollout.background import Background
from tests.language_models import llama
from tests.mlflow_server import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]

PROMPTS = ["The river", "A boat came"]
GREEDY = {"do_sample": False, "max_new_tokens": 12}


def in_a_process(code, **environment):
    """Run Python in a process that knows nothing of the cluster of these tests; return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGISTRY_SERVE_STATE", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder


@pytest.fixture(scope="module")
def rest():
    return free_port()


@pytest.fixture(scope="module")
def served(model, state, rest):
    """What the process that served it printed; it has ended."""
    said = in_a_process(
        f"""
        import registry_serve as mii

        client = mii.serve(
            "{model}",
            replica_num=2,
            port_number={free_port()},
            enable_restful_api=True,
            restful_api_port={rest},
            on_progress=print,
        )
        response = client({PROMPTS!r}, max_new_tokens=12, do_sample=False)
        print(response)
        """
    )
    yield said
    for record in records.everything():
        terminate(record)
    with suppress(FileNotFoundError):
        Background.model_validate_json((state / "cluster.json").read_text()).end()


@pytest.fixture(scope="module")
def expected(model):
    """What the model itself says to the prompts, greedily."""
    torch.set_num_threads(1)
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        whole = loaded.generate(ids, do_sample=False, max_new_tokens=12)[0]
        before = tokenizer.decode(whole[: ids.shape[1]], skip_special_tokens=True)
        texts.append(tokenizer.decode(whole, skip_special_tokens=True)[len(before) :])
    return texts


@pytest.fixture
def client(served, model):
    return mii.client(model)


def seats(client):
    return client.status()["replicas"]


def until(condition, within_s=60):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_model_is_served_and_outlives_the_process_that_served_it(served, expected, state):
    assert served[0] == "Starting Ray"
    assert any("Loading tiny-llama-mii-deployment: 0 of 2 replicas are ready" in line for line in served)
    assert served[-1] == f"[{', '.join(expected)}]"
    [record] = (state / "persistent").iterdir()
    assert record.name == "tiny-llama-mii-deployment.json"
    assert (stat.S_IMODE(record.stat().st_mode), stat.S_IMODE(record.parent.stat().st_mode)) == (0o600, 0o700)


def test_another_process_finds_it_by_its_model_or_its_name(served, model, expected):
    said = in_a_process(
        f"""
        from registry_serve import mii

        for name in ({model!r}, "tiny-llama-mii-deployment"):
            client = mii.client(name)
            print(client({PROMPTS!r}, max_new_tokens=12, do_sample=False))
        print(type(client) is mii.backend.MIIClient)
        try:
            mii.client("another")
        except mii.errors.DeploymentNotFoundError as error:
            print(error)
        """
    )
    assert said[:3] == [f"[{', '.join(expected)}]"] * 2 + ["True"]
    assert said[3] == "There is no deployment 'another'. There are: tiny-llama-mii-deployment."


def test_responses_have_four_fields_and_come_in_the_order_of_the_prompts(client, expected):
    answered = client(PROMPTS, **GREEDY)
    assert [each.generated_text for each in answered] == expected
    assert [each.generated_length for each in answered] == [12, 12]
    assert all(each.prompt_length > 0 for each in answered)
    [alone] = client.generate("The river", **GREEDY)
    assert alone == answered[0]
    assert alone.finish_reason == "length"


def test_requests_go_to_the_replicas_in_turn_and_a_list_is_one_request(client):
    takers = []
    for _ in range(4):
        before = [each["requests"] for each in seats(client)]
        client(PROMPTS, **GREEDY)
        [taker] = [each["number"] for each in seats(client) if each["requests"] == before[each["number"]] + 1]
        takers.append(taker)
    assert takers in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_options_limit_and_end_an_answer(client, expected):
    text = expected[0]
    [longer] = client("The river", do_sample=False, max_length=30)
    assert longer.prompt_length + longer.generated_length == 30
    assert longer.generated_text.startswith(text)
    [whole] = client("The river", do_sample=False)
    assert whole.finish_reason == "stop" or whole.prompt_length + whole.generated_length == 64
    stop = text[4:9]
    for given in (stop, [stop, "never comes"]):
        [stopped] = client("The river", stop=given, **GREEDY)
        assert (stopped.generated_text, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    [full] = client("The river", return_full_text=True, **GREEDY)
    assert full.generated_text == f"The river{text}"
    one, other = (client("The river", seed=3, max_new_tokens=8) for _ in range(2))
    assert one == other


def test_what_cannot_be_answered_says_why(client):
    with pytest.raises(UnknownArgument, match=r"no .max_tokens.\..*max_new_tokens"):
        client("The river", max_tokens=3)
    with pytest.raises(InvalidRequest, match="top_p should be less than or equal to 1"):
        client("The river", top_p=2.0)
    with pytest.raises(InvalidRequest, match=r"max_length must be above the number of tokens of the prompt, \d"):
        client("The river", max_length=1)
    with pytest.raises((InvalidRequest, TooManyTokens), match="tokens"):
        client("The river rose. " * 50)
    with pytest.raises(InvalidRequest, match="prompts should be a text, or a list of texts"):
        client([])


def test_pieces_of_a_stream_are_the_answer_and_the_last_says_how_it_ended(client, expected):
    pieces = []
    assert client("The river", streaming_fn=lambda each: pieces.extend(each), **GREEDY) is None
    assert "".join(each.generated_text for each in pieces) == expected[0]
    assert {each.finish_reason for each in pieces[:-1]} == {"none"}
    assert (pieces[-1].generated_text, pieces[-1].finish_reason, pieces[-1].generated_length) == ("", "length", 12)
    with pytest.raises(RuntimeError, match="one prompt"):
        client(PROMPTS, streaming_fn=print)


def test_all_ways_to_ask_work_where_an_event_loop_runs(client, expected):
    async def ask():
        first = client("The river", **GREEDY)  # keeps the loop, and works
        several = await asyncio.gather(*[client.generate_async("The river", **GREEDY) for _ in range(8)])
        known = await client._request_async_response(PROMPTS, **GREEDY)
        pieces = [piece async for [piece] in client._request_async_response_stream(["The river"], **GREEDY)]
        return first, several, known, "".join(each.generated_text for each in pieces)

    for _ in range(2):  # each run has a loop of its own
        first, several, known, streamed = asyncio.run(ask())
        assert {str(each) for (each,) in [first, *several]} == {expected[0]} == {streamed}
        assert list(map(str, known)) == expected


def test_http_clients_are_answered_where_that_is_asked_for(client, rest, expected):
    address = f"http://localhost:{rest}"
    deployment = f"{address}/mii/tiny-llama-mii-deployment"
    answered = requests.post(deployment, json={"prompts": PROMPTS, **GREEDY}, timeout=30)
    assert [each["generated_text"] for each in answered.json()] == expected
    assert set(answered.json()[0]) == {"generated_text", "prompt_length", "generated_length", "finish_reason"}
    alone = requests.post(deployment, json={"prompts": "The river", **GREEDY}, timeout=30)
    assert len(alone.json()) == 1
    assert requests.get(f"{address}/healthz", timeout=30).text == "ok"
    for body, status in (({"prompts": 1}, 422), ({"prompts": "a", "max_tokens": 1}, 422), ("no", 422)):
        refused = requests.post(deployment, json=body, timeout=30)
        assert (refused.status_code, refused.json()["status"]) == (status, status)
    assert requests.post(f"{address}/mii/another", json={"prompts": "a"}, timeout=30).status_code == 404
    foreign = requests.post(deployment, json={"prompts": "a"}, headers={"origin": "http://evil.test"}, timeout=30)
    assert foreign.status_code == 403


def test_the_command_line_lists_and_describes_it(client, model, capsys, monkeypatch):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["registry-serve", *words])
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().out

    [told] = json.loads(command("get", "deployments", "--json"))
    assert (told["name"], told["state"], told["serves"]) == ("tiny-llama-mii-deployment", "running", model)
    assert (told["replicas_ready"], told["replicas"], told["url"]) == (2, 2, f"grpc://127.0.0.1:{client.port}")
    described = json.loads(command("describe", "deployment", told["name"], "--json"))
    assert {**told, "model": None} == {key: value for key, value in described.items() if key != "seats"}
    assert [each["process"] for each in described["seats"]] == [each["process"] for each in seats(client)]
    shown = command("describe", "deployment", told["name"])
    assert all(f"{each['process']}" in shown for each in seats(client))


def test_callers_without_the_token_are_refused(client):
    channel, calls = wire.connect(wire.target("localhost", client.port))
    with channel:
        for token in ("", "wrong"):
            with pytest.raises(grpc.RpcError) as refused:
                calls.generate({"prompts": ["a"]}, metadata=wire.metadata(token))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_streams_that_are_cut_free_their_places(client, expected):
    async def cut():
        streams = [client._request_async_response_stream("The river", do_sample=False) for _ in range(50)]
        await asyncio.gather(*[anext(each) for each in streams])
        await asyncio.gather(*[each.aclose() for each in streams])

    asyncio.run(cut())
    until(lambda: [each["pending_requests"] for each in seats(client)] == [0, 0], within_s=5)
    assert [str(each) for each in client(PROMPTS, **GREEDY)] == expected


def test_names_and_ports_that_are_taken_are_told_before_anything_starts(client, model, rest):
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="is there already"):
        mii.serve(model, port_number=free_port())
    with pytest.raises(ConfigurationError, match="belongs to the deployment 'tiny-llama-mii-deployment'"):
        mii.serve(model, deployment_name="other", port_number=client.port)
    with pytest.raises(ConfigurationError, match=f"Port {rest} is taken.*restful_api_port"):
        mii.serve(
            model, deployment_name="other", port_number=free_port(), enable_restful_api=True, restful_api_port=rest
        )
    assert time.monotonic() - began < 10
    assert [record.name for record in records.everything()] == ["tiny-llama-mii-deployment"]


def test_a_model_that_cannot_be_loaded_is_told_in_one_line_and_nothing_is_left(client, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*no-such-model") as refused:
        mii.serve(str(tmp_path), deployment_name="broken/one", port_number=free_port())
    assert time.monotonic() - began < 60
    assert "\n" not in str(refused.value)
    assert [record.name for record in records.everything()] == ["tiny-llama-mii-deployment"]
    assert client("The river", **GREEDY)


def test_a_killed_replica_comes_back_while_the_other_answers(client, expected):
    killed, other = seats(client)
    failures, answered, enough = [], [], threading.Event()

    def ask():
        while not enough.is_set():
            try:
                answered.append(str(client("The river", **GREEDY)[0]))
            except Exception as error:  # noqa: BLE001 - looked at below
                failures.append(error)
            time.sleep(0.05)  # the new replica needs the CPU, too

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        os.kill(killed["process"], signal.SIGKILL)
        until(lambda: not seats(client)[0]["up"], within_s=10)
        before, times = len(answered), seats(client)[1]["requests"]
        until(lambda: len(answered) > before + 5)
        assert seats(client)[1]["requests"] > times
        until(lambda: seats(client)[0]["up"])
    finally:
        enough.set()
        asking.join()
    assert failures == []
    assert set(answered) == {expected[0]}
    now = seats(client)
    assert now[0]["process"] != killed["process"]
    assert now[1]["process"] == other["process"]
    counts = [each["requests"] for each in now]
    for _ in range(2):
        client("The river", **GREEDY)
    assert [each["requests"] for each in seats(client)] == [count + 1 for count in counts]


def test_a_killed_front_is_back_on_its_port(client, expected):
    [listening] = [
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == client.port
    ]
    os.kill(listening, signal.SIGKILL)
    with pytest.raises(DeploymentUnavailable, match="Try again"):
        client("The river", **GREEDY)

    def answers():
        with suppress(DeploymentUnavailable):
            return [str(each) for each in client(PROMPTS, **GREEDY)] == expected

    until(answers)


def test_whoever_finds_it_can_end_it_and_nothing_is_left(served, model, state):
    held = json.loads((state / "cluster.json").read_text())
    in_a_process(
        f"""
        import registry_serve as mii
        client = mii.client("{model}")
        client.terminate_server()
        """
    )
    assert [pid for pid in psutil.pids() if _session(pid) == held["leader"]] == []
    assert not (state / "cluster.json").exists()
    assert list((state / "persistent").iterdir()) == []
    with pytest.raises(mii.errors.DeploymentNotFoundError):
        mii.client(model)


def _session(pid):
    try:
        return os.getsid(pid)
    except OSError:
        return None
