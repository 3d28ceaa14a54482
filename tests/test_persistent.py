"""Persistent deployments without a cluster: settings, records, turns, and the wire with replicas that are stand-ins."""

import asyncio
import dataclasses
import json
import logging
import re
import socket
import stat
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import grpc
import httpx
import pytest

import registry_serve
from registry_serve import cli, errors, launch, mii
from registry_serve.cli.screen import NOTHING
from registry_serve.errors import (
    ConfigurationError,
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentUnavailable,
    InvalidRequest,
    TooManyRequests,
    TooManyTokens,
    UnknownArgument,
)
from registry_serve.generation import Chunk
from registry_serve.generation.parameters import AS_MANY_AS_FIT, GenerationParameters
from registry_serve.persistent import (
    GenerateParamsConfig,
    MIIConfig,
    ModelConfig,
    PersistentClient,
    Response,
    config,
    records,
    starting,
    statuses,
    turns,
    wire,
)
from registry_serve.persistent.config import configured, pipeline_configured
from registry_serve.persistent.front import Answers
from registry_serve.persistent.records import Record
from registry_serve.persistent.rest import application
from registry_serve.persistent.turns import ReplicaGone, Turns
from registry_serve.rollout.state import changing
from tests.language_models import llama
from tests.mlflow_server import free_port


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(config, "_said", set())
    return tmp_path / "state"


def folder(tmp_path, name="tiny"):
    made = tmp_path / name
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text("{}")
    return str(made)


def record_of(model="org/model", name="", port=50050, **more):
    made = configured(model, None, None, {"deployment_name": name, "port_number": port, **more})
    now = datetime.now(timezone.utc)
    return Record(config=made, token="secret", address=f"127.0.0.1:{free_port()}", session="/gone", created=now)


# --- settings --------------------------------------------------------------------------------------------------------


def test_keywords_find_their_configuration():
    made = configured("org/model", {"replica_num": 2}, {"port_number": 7000}, {"tensor_parallel": 2, "max_length": 64})
    assert (made.name, made.port_number) == ("org/model-mii-deployment", 7000)
    model = made.model_conf
    assert (model.model_name_or_path, model.replica_num, model.tensor_parallel) == ("org/model", 2, 2)
    same = configured("", ModelConfig(model_name_or_path="org/model", replica_num=2), None, {})
    assert same.model_conf.replica_num == 2
    whole = configured("", None, MIIConfig(model_config=model, port_number=7000), {})
    assert whole == made


def test_defaults_are_those_of_mii():
    made = configured("org/model", None, None, {})
    assert (made.port_number, made.restful_api_port, made.enable_restful_api) == (50050, 51080, False)
    assert (made.model_conf.replica_num, made.model_conf.tensor_parallel) == (1, 1)
    assert GenerateParamsConfig().do_sample
    assert GenerateParamsConfig().top_p == 0.9


def test_a_folder_is_known_by_its_absolute_path_and_named_by_its_last_part(tmp_path, monkeypatch):
    path = folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for given in ("tiny", "./tiny", path):
        made = configured(given, None, None, {})
        assert (made.model_conf.model_name_or_path, made.name) == (path, "tiny-mii-deployment")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": ""}, "Say which model"),
        ({"model": "/nowhere/at/all"}, "neither a folder nor a name on the hub"),
        ({"model": "org/model", "replica_num": 0}, "replica_num should be greater than or equal to 1"),
        ({"model": "org/model", "port_number": 70000}, "port_number should be less than or equal to 65535"),
        ({"model": "org/model", "task": "fill-mask"}, "task must be 'text-generation'"),
        ({"model": "org/model", "deployment_type": "AML"}, "deployment_type should be 'local'"),
        ({"model": "org/model", "deployment_name": "x" * 200}, "deployment_name must be"),
        ({"model": "org/model", "deployment_name": "部署" * 20}, "is too long. Give a shorter deployment_name"),
        ({"model": "org/" + "x" * 300}, "is too long. Give a shorter deployment_name"),
        (
            {"model": "org/model", "enable_restful_api": True, "port_number": 7000, "restful_api_port": 7000},
            "port_number and restful_api_port are both 7000",
        ),
        ({"model": "org/model", "model_config": {"replica_num": 2}, "replica_num": 3}, "said twice: 2 and 3"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_sentence(given, said):
    model, of_model = given.pop("model"), given.pop("model_config", None)
    with pytest.raises(ConfigurationError, match=said) as refused:
        registry_serve.serve(model, of_model, **given)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_a_folder_that_holds_no_model_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no config\.json"):
        registry_serve.serve(str(tmp_path))


def test_a_folder_with_a_long_name_needs_a_name_for_its_deployment_only(tmp_path):
    path = folder(tmp_path, "x" * 245)
    with pytest.raises(ConfigurationError, match="Give a shorter deployment_name"):
        configured(path, None, None, {})
    assert configured(path, None, None, {"deployment_name": "short"}).model_conf.model_name_or_path == path
    assert pipeline_configured(path, None, {}).model_name_or_path == path


def test_why_one_cannot_listen_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {port} is taken. .*some_port"):
            launch.require_free("localhost", port, "some_port")
        assert port not in launch.free_ports([port])
    for nowhere in ("no host", "192.0.2.1", ":::"):  # the second is nobody's
        with pytest.raises(ConfigurationError, match=f"Nobody can listen at '{nowhere}': .*Name an address"):
            launch.require_free(nowhere, port)
    assert launch.address_of("::1", 80)[0] == socket.AF_INET6
    assert launch.address_of("", 80)[1] == ("0.0.0.0", 80)


def test_a_cluster_of_its_own_is_ended_when_nothing_can_be_given_to_it(monkeypatch):
    preferred, ports, ends = free_port(), [], []
    clusters = [None, SimpleNamespace(address="", session="", ask=refuse)]
    monkeypatch.setattr(starting, "_PREFERRED_PORT", preferred)
    monkeypatch.setattr(starting, "connected", lambda tell: nullcontext(clusters.pop(0)))
    monkeypatch.setattr(
        starting, "start", lambda *given: ports.append(given[2]) or SimpleNamespace(end=lambda: ends.append(1))
    )
    with pytest.raises(ConfigurationError, match="refused"):
        registry_serve.serve("org/model", port_number=free_port(), enable_restful_api=True, restful_api_port=preferred)
    assert (ends, preferred in ports) == ([1], False)


def refuse(*given, tell):
    raise ConfigurationError("refused")


def test_an_unknown_keyword_is_named():
    for call in (registry_serve.serve, mii.pipeline):
        with pytest.raises(mii.errors.UnknownArgument, match="no 'replicas'"):
            call("org/model", replicas=2)
    with pytest.raises(UnknownArgument, match="no 'port'"):
        registry_serve.serve("org/model", mii_config={"port": 1})
    assert issubclass(UnknownArgument, ValueError)


def test_fields_without_a_meaning_here_are_said_once():
    with pytest.warns(UserWarning, match="quantization_mode is not used"):
        configured("org/model", None, None, {"quantization_mode": "wf6af16", "device_map": "auto"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configured("org/model", None, None, {"quantization_mode": "wf6af16"})


def test_every_field_of_mii_is_accepted():
    of_model = {
        "model_name_or_path": "org/model",
        "tokenizer": "org/model",
        "task": "text-generation",
        "tensor_parallel": 1,
        "quantization_mode": None,
        "inference_engine_config": {},
        "torch_dist_port": 29500,
        "zmq_port_number": 25555,
        "replica_num": 1,
        "replica_configs": [{"hostname": "a", "gpu_indices": [0]}],
        "device_map": [[0], [1]],
        "max_length": None,
        "sync_debug": False,
        "profile_model_time": False,
    }
    of_server = {
        "deployment_name": "n",
        "deployment_type": "local",
        "port_number": 50050,
        "enable_restful_api": True,
        "restful_api_host": "localhost",
        "restful_api_port": 51080,
        "restful_processes": 32,
        "hostfile": "/job/hostfile",
        "version": 1,
        "instance_type": "",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert configured("", of_model, of_server, {}).name == "n"
    assert set(of_model) == set(ModelConfig.model_fields)
    assert {*of_server, "model_conf"} == set(MIIConfig.model_fields)


def test_options_become_parameters_of_the_handler():
    asked = GenerateParamsConfig.of({"stop": "end", "temperature": 0.5, "top_k": None, "min_new_tokens": 2})
    made = GenerationParameters.of(asked.parameters(100))
    assert (made.stop, made.temperature, made.top_k, made.top_p) == (("end",), 0.5, 0, 0.9)
    assert (made.max_length, made.max_new_tokens, made.min_new_tokens) == (100, AS_MANY_AS_FIT, 2)
    assert made.return_full_text is False
    own = GenerationParameters.of(GenerateParamsConfig.of({"max_length": 7, "max_new_tokens": 3}).parameters(100))
    assert (own.max_length, own.max_new_tokens) == (7, 3)
    assert GenerateParamsConfig.of({"stop": ["a", "b"]}).stop == ("a", "b")


@pytest.mark.parametrize("options", [{"top_p": 0}, {"temperature": -1.0}, {"stop": [""]}, {"max_new_tokens": 1.5}])
def test_options_that_make_no_sense_are_refused(options):
    [name] = options
    with pytest.raises(InvalidRequest, match=name):
        GenerateParamsConfig.of(options)


def test_a_response_prints_as_its_text_and_travels_as_its_fields():
    response = Response("Hello", 3, 2, "stop")
    assert (repr(response), str(response), str([response])) == ("Hello", "Hello", "[Hello]")
    assert Response.from_msg_dict(json.loads(json.dumps(response.to_msg_dict()))) == response


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_and_is_its_owners_only(state):
    record = record_of(name="org/model-mii-deployment")
    records.keep(record)
    assert records.find("org/model-mii-deployment") == record
    [file] = (state / "persistent").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in repr(record)
    records.forget(record.model_copy(update={"token": "another's"}))
    assert records.find(record.name) is not None
    records.forget(record)
    assert records.everything() == []


def test_a_deployment_is_found_by_its_name_or_by_its_model(tmp_path, monkeypatch):
    path = folder(tmp_path)
    plain, named = record_of(path), record_of(path, name="named")
    for record in (plain, named):
        records.keep(record)
    monkeypatch.chdir(tmp_path)
    assert records.named("named").name == "named"
    assert {records.named(each).name for each in (path, "tiny", "tiny-mii-deployment")} == {plain.name}
    records.forget(plain)
    assert records.named(path).name == "named"
    with pytest.raises(DeploymentNotFound, match=r"'other'\. There are: named"):
        records.named("other")


def test_a_record_whose_model_is_gone_can_still_be_read(tmp_path):
    path = folder(tmp_path)
    record = record_of(path)
    records.keep(record)
    (tmp_path / "tiny" / "config.json").unlink()
    (tmp_path / "tiny").rmdir()
    assert records.find(record.name) == record


def test_a_damaged_record_names_its_file(state):
    record = record_of()
    records.keep(record)
    record.path.write_text("{")
    with pytest.raises(ConfigurationError, match=str(record.path)):
        records.named(record.name)


def test_a_damaged_record_does_not_hide_the_others_and_can_be_deleted(capsys, caplog, monkeypatch):
    damaged, other = record_of(name="some/one", port=free_port()), record_of(name="other", port=free_port())
    for record in (damaged, other):
        records.keep(record)
    damaged.path.write_text("{")
    assert records.everything() == [other]
    assert str(damaged.path) in caplog.text
    assert [each.name for each in statuses.deployments()] == ["other"]
    assert statuses.names() == ["other", "some/one"]
    assert records.named("org/model") == other
    for name in ("some/one", "other"):
        monkeypatch.setattr("sys.argv", ["registry-serve", "delete", "deployment", name, "--yes"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert capsys.readouterr().out.splitlines()[-1] == f"{name} is deleted."
    assert list(other.path.parent.iterdir()) == []


def test_nothing_is_known_by_a_name_that_no_file_can_have():
    for name in ("x" * 300, "部署" * 100, "/folder" * 100):
        with pytest.raises(DeploymentNotFound):
            mii.client(name)


def test_a_deployment_that_is_being_served_is_not_taken_for_one_that_has_ended(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "registry_serve.rollout")
    record = record_of(name="some", port=free_port())
    records.keep(record)
    in_serve = threading.Event()
    monkeypatch.setattr(starting, "lives", lambda record, tell: in_serve.is_set())
    with ThreadPoolExecutor(1) as pool:
        with changing(print):  # as who serves it
            asking = pool.submit(mii.client, "some")
            while "Waiting for another command" not in caplog.text:
                assert not asking.done()
                time.sleep(0.01)
            in_serve.set()
        with pytest.raises(DeploymentUnavailable, match="is starting"):
            asking.result(30)
    assert records.everything() == [record]


def test_what_a_dead_cluster_left_is_recognised_said_and_removed():
    record = record_of(name="ended", port=free_port())
    records.keep(record)
    with pytest.raises(mii.errors.DeploymentNotFoundError, match="'ended' is not there any more") as refused:
        mii.client("ended")
    assert isinstance(refused.value, DeploymentEnded)
    with pytest.raises(DeploymentNotFound, match="There are: none"):
        mii.client("ended")


def test_ending_what_has_ended_with_its_cluster_removes_the_record():
    record = record_of(name="ended", port=free_port())
    records.keep(record)
    PersistentClient(record.config).terminate_server()
    assert records.everything() == []


def test_what_has_ended_is_listed_as_stopped_until_it_is_deleted(monkeypatch, capsys):
    for name in ("some/one", "some/other", "another"):
        records.keep(record_of(name=name, port=free_port()))
    told = statuses.deployments()
    assert {(each.state, each.replicas_ready, each.replicas) for each in told} == {("stopped", 0, 1)}
    assert all("has ended. Serve it again." in each.message for each in told)

    def command(*words):
        monkeypatch.setattr("sys.argv", ["registry-serve", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out + told.err

    code, described = command("describe", "deployment", "another")
    assert code == 0
    assert re.search(r"state: stopped.*has ended\. Serve it again\..*Deployed from:", described, re.DOTALL)
    for words in ("stop deployment another", "stop deployments *", "update deployment another", "ping another"):
        code, refused = command(*words.split())
        assert (code, "another is a persistent deployment." in refused) == (1, True)
    assert command("delete", "deployment", "some/*", "--yes")[1].splitlines()[-1] == "some/other is deleted."
    assert statuses.names() == ["another"]


def test_replicas_are_described_by_what_is_known_of_them(monkeypatch, capsys):
    record = record_of(name="two", port=free_port())
    records.keep(record)
    running = dataclasses.replace(statuses.status("two"), state="running", message="")
    up = {"number": 0, "up": True, "requests": 0, "process": 123, "node": "here"}
    never_seen = {"number": 1, "up": False, "requests": 0, "process": None, "node": None}
    monkeypatch.setattr(statuses, "status", lambda name: running)
    monkeypatch.setattr(statuses, "replicas", lambda name: [up, never_seen])
    monkeypatch.setattr("sys.argv", ["registry-serve", "describe", "deployment", "two"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert rows == [
        ["REPLICA", "UP", "REQUESTS", "PROCESS", "NODE"],
        ["0", "yes", "0", "123", "here"],
        ["1", "no", "0", NOTHING, NOTHING],
    ]


def test_whoever_else_listens_at_its_port_tells_of_no_replicas():
    records.keep(record_of(name="foreign", port=free_port()))
    with pytest.raises(DeploymentNotFound):
        statuses.replicas("unknown")
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"localhost:{records.named('foreign').config.port_number}")
    server.start()
    try:
        assert statuses.replicas("foreign") == []
    finally:
        server.stop(0)


# --- turns -----------------------------------------------------------------------------------------------------------


class StandIn:
    """A replica that writes its number and the prompt's letters, one after the other."""

    def __init__(self, number):
        self.number = number
        self.alive = True
        self.open = 0
        self.failure = None
        self.dies_after = None
        self.fails_at = None
        self.says, self.goes_on = asyncio.Event(), asyncio.Event()
        self.says.set()
        self.goes_on.set()
        self.asked = 0
        self.cancels = False

    async def generate(self, prompt, parameters):
        if self.failure is not None:
            raise self.failure
        self.open += 1
        try:
            for count, letter in enumerate(f"{self.number}{prompt}"):
                if letter == self.fails_at:
                    raise TooManyTokens(100, 64)
                if not self.alive or count == self.dies_after:
                    self.alive = False
                    raise ReplicaGone("it was killed")
                await asyncio.sleep(parameters.get("pause", 0))
                await self.goes_on.wait()
                yield [Chunk(letter, len(prompt), count + 1)]
            yield [Chunk("", len(prompt), count + 1, "length")]
        finally:
            self.open -= 1

    async def status(self):
        self.asked += 1
        await self.says.wait()
        if self.cancels:
            raise asyncio.CancelledError
        if not self.alive:
            raise ReplicaGone("it was killed")
        return {"process": self.number}


async def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def up(made):
    return [each["up"] for each in made.describe()["replicas"]]


async def letters_of(made, prompt):
    return [chunk.text async for chunk, _ in made.stream(prompt, {})]


@asynccontextmanager
async def taking_turns(monkeypatch, count=2):
    monkeypatch.setattr(turns, "_ASK_EVERY_S", 0.01)
    stand_ins = [StandIn(number) for number in range(count)]
    made = Turns("some", stand_ins)
    try:
        await until(lambda: all(up(made)))
        yield made, stand_ins
    finally:
        made.close()


async def test_requests_are_taken_in_turn_whole_lists_and_streams_alike(monkeypatch):
    async with taking_turns(monkeypatch) as (made, _):
        takers = [(await made.answer(["a", "b"], {}))[1] for _ in range(4)]
        assert takers == [0, 1, 0, 1]
        assert [number async for _, number in made.stream("a", {})] == [0, 0, 0]
        answered, taker = await made.answer(["ab", "c"], {})
        assert (list(map(str, answered)), taker) == (["1ab", "1c"], 1)
        assert [each["requests"] for each in made.describe()["replicas"]] == [3, 3]


async def test_requests_that_come_together_are_shared_out_evenly(monkeypatch):
    async with taking_turns(monkeypatch) as (made, _):
        await asyncio.gather(*[made.answer(["a"], {"pause": 0.01}) for _ in range(20)])
        assert [each["requests"] for each in made.describe()["replicas"]] == [10, 10]


async def test_a_replica_that_does_not_answer_is_passed_over_until_it_does(monkeypatch):
    async with taking_turns(monkeypatch) as (made, stand_ins):
        stand_ins[0].alive = False
        await until(lambda: up(made) == [False, True])
        assert [(await made.answer(["a"], {}))[1] for _ in range(3)] == [1, 1, 1]
        stand_ins[0].alive = True
        await until(lambda: all(up(made)))
        assert {(await made.answer(["a"], {}))[1] for _ in range(2)} == {0, 1}


async def test_a_request_that_loses_its_replica_before_anything_was_sent_goes_to_the_next(monkeypatch):
    async with taking_turns(monkeypatch) as (made, stand_ins):
        stand_ins[0].dies_after = 2
        answered, taker = await made.answer(["abc"], {})
        assert (str(answered[0]), taker) == ("1abc", 1)
        stand_ins[0].dies_after, stand_ins[0].alive = 0, True
        await until(lambda: all(up(made)))
        assert [await letters_of(made, "ab") for _ in range(2)] == [["1", "a", "b", ""]] * 2


async def test_a_stream_that_loses_its_replica_on_the_way_ends_with_an_error(monkeypatch):
    async with taking_turns(monkeypatch) as (made, stand_ins):
        stand_ins[0].dies_after = 2
        stream = made.stream("abc", {})
        assert [(await anext(stream))[0].text for _ in range(2)] == ["0", "a"]
        with pytest.raises(DeploymentUnavailable, match="lost the replica"):
            await anext(stream)


async def test_a_request_that_ends_replicas_ends_two_at_the_most(monkeypatch):
    async with taking_turns(monkeypatch, count=3) as (made, stand_ins):
        for each in stand_ins:
            each.dies_after = 1
        with pytest.raises(DeploymentUnavailable, match="lost the replicas"):
            await made.answer(["abc"], {})
        assert [each.alive for each in stand_ins] == [False, False, True]


async def test_without_any_replica_a_request_waits_for_a_moment_and_is_refused(monkeypatch):
    async with taking_turns(monkeypatch, count=1) as (made, [stand_in]):
        stand_in.alive = False
        await until(lambda: not any(up(made)))
        waiting = asyncio.ensure_future(made.answer(["a"], {}))
        with monkeypatch.context() as patch:
            await asyncio.sleep(0.01)  # it has begun to wait, with more patience
            patch.setattr(turns, "_PATIENCE_S", 0.1)
            with pytest.raises(DeploymentUnavailable, match="no replica that answers"):
                await made.answer(["a"], {})
        assert not waiting.done()
        stand_in.alive = True
        assert str((await waiting)[0][0]) == "0a"


async def test_what_a_replica_refuses_is_not_tried_on_another(monkeypatch):
    async with taking_turns(monkeypatch) as (made, stand_ins):
        stand_ins[0].failure = TooManyTokens(100, 64)
        with pytest.raises(TooManyTokens):
            await made.answer(["a"], {})
        assert [each["requests"] for each in made.describe()["replicas"]] == [1, 0]
        assert stand_ins[0].open == stand_ins[1].open == 0


async def test_a_silent_replica_is_given_nothing_and_goes_on_with_what_it_has(monkeypatch):
    async with taking_turns(monkeypatch) as (made, [silent, _]):
        monkeypatch.setattr(turns, "_SILENT_AFTER_S", 0.01)
        silent.goes_on.clear()
        asking = asyncio.ensure_future(made.answer(["a"], {}))
        await until(lambda: silent.open)
        silent.says.clear()
        await until(lambda: up(made) == [False, True])
        assert [(await made.answer(["b"], {}))[1] for _ in range(2)] == [1, 1]
        silent.goes_on.set()
        assert (await asking)[1] == 0
        silent.says.set()
        await until(lambda: all(up(made)))


async def test_what_a_replica_that_is_silent_for_very_long_has_goes_to_the_next(monkeypatch):
    async with taking_turns(monkeypatch) as (made, [silent, _]):
        silent.goes_on.clear()
        asking = asyncio.ensure_future(made.answer(["a"], {}))
        await until(lambda: silent.open)
        silent.says.clear()
        monkeypatch.setattr(turns, "_SILENT_AFTER_S", 0.01)
        monkeypatch.setattr(turns, "_ASK_ANEW_AFTER_S", 0.01)
        assert (await asking)[1] == 1
        assert silent.open == 0


async def test_a_question_that_ray_cancels_is_asked_again(monkeypatch):
    async with taking_turns(monkeypatch, count=1) as (made, [stand_in]):
        stand_in.cancels = True
        await until(lambda: not any(up(made)))
        stand_in.cancels = False
        await until(lambda: all(up(made)))
        stand_in.says.clear()
        before = stand_in.asked
        await until(lambda: stand_in.asked > before)
        made.close()  # while it is being asked
        stand_in.says.set()
        await until(lambda: all(each.done() for each in made._asking))
        assert all(each.cancelled() for each in made._asking)


async def test_one_prompt_that_fails_ends_the_others_of_its_request(monkeypatch):
    async with taking_turns(monkeypatch, count=1) as (made, [stand_in]):
        stand_in.fails_at = "!"
        with pytest.raises(TooManyTokens):
            await made.answer(["a" * 1000, "b!"], {"pause": 0.05})
        assert stand_in.open == 0


async def test_who_leaves_ends_all_prompts_of_a_request(monkeypatch):
    async with taking_turns(monkeypatch, count=1) as (made, [stand_in]):
        asking = asyncio.ensure_future(made.answer(["a" * 1000, "b" * 1000], {"pause": 0.05}))
        await until(lambda: stand_in.open == 2)
        asking.cancel()
        await asyncio.wait([asking])
        assert stand_in.open == 0


# --- the wire --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(monkeypatch, count=2):
    """A server with stand-ins for replicas, and a client in this process."""
    record = record_of(port=free_port())
    records.keep(record)
    async with taking_turns(monkeypatch, count) as (made, stand_ins):
        answers = Answers(made, None, lambda: None)
        server = await wire.listen(answers, record.token, record.config.port_number)
        try:
            yield PersistentClient(record.config), stand_ins, answers
        finally:
            await server.stop(0)


async def test_a_client_without_a_way_to_the_cluster_ends_a_deployment_by_its_front(monkeypatch):
    record = record_of(port=free_port())
    records.keep(record)
    async with taking_turns(monkeypatch) as (made, _):
        ended = threading.Event()
        server = await wire.listen(Answers(made, None, ended.set), record.token, record.config.port_number)
        ending = asyncio.ensure_future(PersistentClient(record.config).terminate_async())
        assert await asyncio.to_thread(ended.wait, 10)
        await asyncio.sleep(0.2)
        assert not ending.done()
        await server.stop(0)
        await ending
    assert records.everything() == []


async def test_a_call_goes_over_the_wire_and_back(monkeypatch):
    async with served(monkeypatch) as (client, _, _):
        assert list(map(str, await client.generate_async(["ab", "c"]))) == ["0ab", "0c"]
        [response] = await asyncio.to_thread(client, "xyz")
        assert response.to_msg_dict() == {
            "generated_text": "1xyz",
            "prompt_length": 3,
            "generated_length": 4,
            "finish_reason": "length",
        }
        told = await asyncio.to_thread(client.status)
        assert [(each["number"], each["up"], each["process"]) for each in told["replicas"]] == [
            (0, True, 0),
            (1, True, 1),
        ]


async def test_a_stream_goes_over_the_wire_piece_by_piece(monkeypatch):
    async with served(monkeypatch) as (client, _, _):
        pieces = []
        assert await asyncio.to_thread(client, "ab", pieces.extend) is None
        assert [(each.generated_text, each.finish_reason) for each in pieces] == [
            ("0", "none"),
            ("a", "none"),
            ("b", "none"),
            ("", "length"),
        ]
        assert await client.generate_async("ab", pieces.extend) is None
        assert len(pieces) == 8


async def test_a_client_that_leaves_ends_what_it_asked_for(monkeypatch):
    slow = "a" * 10_000
    async with served(monkeypatch, count=1) as (client, [stand_in], answers):
        monkeypatch.setattr(answers, "_read", lambda asked: (asked["prompts"], {"pause": 0.01}))
        async with aclosing(client._request_async_response_stream(slow)) as pieces:
            await anext(pieces)
            assert stand_in.open == 1
        await until(lambda: stand_in.open == 0)
        asking = asyncio.ensure_future(client.generate_async(slow))
        await until(lambda: stand_in.open == 1)
        asking.cancel()
        await until(lambda: stand_in.open == 0)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (InvalidRequest([{"location": ["prompts", 0], "message": "größer"}]), grpc.StatusCode.INVALID_ARGUMENT),
        (TooManyTokens(100, 64), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelNotFound("m"), grpc.StatusCode.NOT_FOUND),
        (TooManyRequests(5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.PredictionFailed("m", "1", "raised an error"), grpc.StatusCode.INTERNAL),
        (errors.PredictionTimeout("m", "1", 1.5), grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
    ids=lambda each: getattr(each, "name", type(each).__name__),
)
async def test_errors_arrive_as_what_they_were(monkeypatch, failure, status):
    async with served(monkeypatch, count=1) as (client, [stand_in], _):
        stand_in.failure = failure
        for asking in (
            client.generate_async("a"),
            asyncio.to_thread(client, "a"),
            asyncio.to_thread(client, "a", print),
        ):
            with pytest.raises(type(failure)) as raised:
                await asking
            assert (str(raised.value), raised.value.members) == (str(failure), failure.members)
        channel, calls = wire.connect_async(wire.target("localhost", client.port))
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await calls.generate({"prompts": ["a"]}, metadata=wire.metadata("secret"))
        assert (refused.value.code(), refused.value.details()) == (status, failure.detail)


async def test_an_error_that_nobody_foresaw_tells_nothing_of_its_cause(monkeypatch):
    async with served(monkeypatch, count=1) as (client, [stand_in], _):
        stand_in.failure = ValueError("/secret/path")
        with pytest.raises(errors.RegistryServeError, match="An unexpected error") as raised:
            await client.generate_async("a")
        assert type(raised.value) is errors.RegistryServeError
        assert "secret" not in str(raised.value)


async def test_a_deployment_that_does_not_say_in_time_how_it_is_is_unavailable(monkeypatch):
    monkeypatch.setattr(Answers, "status", lambda self, asked: asyncio.sleep(1000))
    async with served(monkeypatch, count=1) as (client, _, _):
        with pytest.raises(DeploymentUnavailable, match="in time"):
            await asyncio.to_thread(client.status, 0.1)


async def test_a_deployment_that_could_not_be_ended_can_be_asked_again(monkeypatch, caplog):
    async with taking_turns(monkeypatch) as (made, _):
        tried = []

        def end():
            tried.append(1)
            if len(tried) == 1:
                raise RuntimeError("Serve does not answer")

        answers = Answers(made, None, end)
        await answers.end({})
        await until(lambda: "Serve does not answer" in caplog.text)
        await answers.end({})
        await until(lambda: len(tried) == 2)
        await answers.end({})
        await asyncio.sleep(0)
        assert len(tried) == 2


async def test_a_wrong_token_opens_nothing(monkeypatch):
    async with served(monkeypatch) as (client, stand_ins, _):
        other = record_of(name="other", port=client.port).model_copy(update={"token": "wrong"})
        records.keep(other)
        with pytest.raises(DeploymentUnavailable, match="another token"):
            await PersistentClient(other.config).generate_async("a")
        assert all(each.open == 0 for each in stand_ins)


async def test_messages_may_be_large(monkeypatch):
    async with served(monkeypatch, count=1) as (client, _, answers):
        monkeypatch.setattr(answers, "_read", lambda asked: ([str(len(asked["prompts"][0]))], {}))
        assert str((await client.generate_async("x" * 10_000_000))[0]) == "010000000"
        with pytest.raises(InvalidRequest, match="bytes that one message may have"):
            await client.generate_async("x" * 70_000_000)


async def test_a_port_is_never_shared(monkeypatch):
    async with served(monkeypatch) as (client, _, answers):
        with pytest.raises(RuntimeError, match="bind"):
            await wire.listen(answers, "other", client.port)


async def test_nobody_there_is_an_error_that_says_so():
    record = record_of(port=free_port())
    records.keep(record)
    client = PersistentClient(record.config)
    for asking in (client.generate_async("a"), asyncio.to_thread(client, "a")):
        with pytest.raises(DeploymentUnavailable, match="does not answer"):
            await asking


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def test_the_http_server_answers_lists_of_four_fields(monkeypatch):
    async with served(monkeypatch) as (_, stand_ins, answers):
        transport = httpx.ASGITransport(application(answers, "org/model-mii-deployment"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:51080") as http:
            path = "/mii/org/model-mii-deployment"
            answered = await http.post(path, json={"prompts": ["ab", "c"], "max_new_tokens": 5})
            assert [each["generated_text"] for each in answered.json()] == ["0ab", "0c"]
            assert (await http.get("/healthz")).text == "ok"
            for body, code in (
                (b"{", "malformed_json"),
                (b"[]", "invalid_request"),
                (b"{}", "invalid_request"),
                (b'{"prompts": "a", "top_p": 2}', "invalid_request"),
                (b'{"prompts": "a", "max_tokens": 2}', "unknown_argument"),
            ):
                refused = await http.post(path, content=body)
                assert (refused.json()["code"], refused.headers["content-type"]) == (code, "application/problem+json")
                assert refused.status_code in (400, 422)
            assert (await http.post("/mii/other", json={"prompts": "a"})).status_code == 404
            assert (await http.get(path)).status_code == 405
            foreign = await http.post(path, json={"prompts": "a"}, headers={"origin": "http://evil.test"})
            assert foreign.status_code == 403
            for each in stand_ins:
                each.failure = TooManyRequests(5)
            busy = await http.post(path, json={"prompts": "a"})
            assert (busy.status_code, "retry-after" in busy.headers) == (429, True)


# --- in this process -------------------------------------------------------------------------------------------------


def test_a_pipeline_answers_in_this_process(tmp_path):
    pipe = mii.pipeline(llama(tmp_path / "model"), max_length=20)
    try:
        one, other = pipe(["The river", "A boat"], do_sample=False)
        assert one.prompt_length + one.generated_length == 20
        assert pipe("A boat", do_sample=False) == [other]
        with pytest.raises(InvalidRequest, match="max_length"):
            pipe("The river", max_length=1)
    finally:
        pipe.destroy()
    pipe.destroy()
    with pytest.raises(ConfigurationError, match="destroyed"):
        pipe("A boat")


def test_who_waits_for_a_pipeline_that_is_destroyed_gets_an_error(tmp_path):
    pipe = mii.pipeline(llama(tmp_path / "model"))
    begun = threading.Event()

    async def endless(prompt, parameters):
        begun.set()
        await asyncio.sleep(1000)
        yield

    pipe._generator.generate = endless
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pipe, ["The river", "A boat"])
        assert begun.wait(30)
        pipe.destroy()
        with pytest.raises(ConfigurationError, match="destroyed"):
            waiting.result(30)


def test_the_names_of_mii_are_where_programs_look_for_them():
    assert mii.serve is registry_serve.serve
    assert mii.client is registry_serve.client
    assert mii.backend.MIIClient is mii.backend.client.MIIClient is registry_serve.PersistentClient
    assert mii.config.GenerateParamsConfig is GenerateParamsConfig
    assert mii.config.ReplicaConfig().hostname == ""
    assert mii.errors.DeploymentNotFoundError is DeploymentNotFound


def test_every_field_and_every_option_is_described():
    page = (Path(__file__).parent.parent / "docs" / "persistent.md").read_text()
    for kind in (ModelConfig, MIIConfig, GenerateParamsConfig):
        for name in kind.model_fields:
            assert f"`{name}`" in page, name
