"""Commands that meet each other, are interrupted, or find what another release or another cluster has left."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Client, Listener
from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatus

from registry_serve import rollout
from registry_serve.deployment_file import parse
from registry_serve.errors import ConfigurationError, DeploymentNotFound
from registry_serve.rollout import code, deploying, doors, ending, line, outcomes, records
from registry_serve.rollout.background import Background, living
from registry_serve.rollout.clusters import answers, connected
from registry_serve.rollout.code import Code
from registry_serve.rollout.records import Order, Record
from registry_serve.rollout.serving import put
from registry_serve.rollout.state import state_folder
from tests.mlflow_server import free_port

FILE = {
    "name": "mine",
    "replicas": 1,
    "compute": {"gpus": 0},
    "model": {"model_handler": "tests.toys.Nothing"},
}


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


@pytest.fixture
def alone(monkeypatch):
    """As in a process that has not joined a cluster, which this one may have for other tests."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)


@pytest.fixture
def listening():
    """An address where somebody listens who is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def record_of(**changes):
    now = datetime.now(timezone.utc)
    file = parse(FILE).model_dump(mode="json", exclude_none=True)
    made = Record(name="mine", file=file, folder="/", order=Order(), code=Code(), created=now, deployed=now)
    return made.model_copy(update={"session": "/here", "address": "", **changes})


def later(record):
    return record.model_copy(update={"deployed": record.deployed + timedelta(seconds=1)})


class Elsewhere:
    """A cluster that does with what it is given what a test says."""

    address, session, dashboard, on_this_machine, ours = "127.0.0.1:1", "/here", "", True, False
    background = SimpleNamespace(host="127.0.0.1", port=8123)

    def __init__(self, does=lambda function, *given: None):
        self.does, self.asked = does, []

    def ask(self, function, *given, tell):
        self.asked.append(function.__name__)
        return self.does(function, *given)

    @contextmanager
    def connected(self, tell, **options):
        yield self


# --- between two commands --------------------------------------------------------------------------------------------


def test_what_is_interrupted_while_serve_takes_it_can_still_be_named():
    def interrupted(function, *given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploying._hand_over(record_of(), Elsewhere(interrupted), None, None, print)
    kept = records.get("mine")
    assert (kept.session, kept.url) == ("/here", "http://127.0.0.1:8123/mine")
    assert kept.deployment


@pytest.mark.parametrize("earlier", [None, record_of(url="earlier")])
def test_what_serve_refuses_leaves_the_record_as_it_was(earlier):
    def refused(function, *given):
        raise ConfigurationError("no")

    if earlier is not None:
        records.keep(earlier)
    with pytest.raises(ConfigurationError, match="no"):
        deploying._hand_over(record_of(), Elsewhere(refused), None, earlier, print)
    assert records.find("mine") == earlier


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        (lambda mine: records.keep(later(mine)), "deployed anew meanwhile"),
        (lambda mine: records.keep(mine.model_copy(update={"stopped": True})), "stopped meanwhile"),
        (lambda mine: records.forget("mine"), "deleted meanwhile"),
    ],
)
@pytest.mark.parametrize("before", [None, record_of()])
def test_what_fails_leaves_what_another_command_did_alone(monkeypatch, meanwhile, said, before):
    cluster, mine = Elsewhere(), record_of()
    monkeypatch.setattr(ending, "connected", cluster.connected)
    monkeypatch.setattr(deploying, "connected", cluster.connected)
    meanwhile(mine)
    there = records.find("mine")
    error = deploying._taken_back(mine, before, before, ConfigurationError("it failed."), print)
    assert said in str(error)
    assert cluster.asked == []
    assert records.find("mine") == there


def test_what_fails_undisturbed_is_taken_back(monkeypatch):
    cluster, mine = Elsewhere(), record_of()
    monkeypatch.setattr(ending, "connected", cluster.connected)
    records.keep(mine)
    assert str(deploying._taken_back(mine, None, None, ConfigurationError("it failed."), print)) == "it failed."
    assert cluster.asked == ["remove"]
    assert records.find("mine") is None


def test_an_update_changes_what_the_command_before_it_has_left(monkeypatch):
    cluster = Elsewhere(lambda function, *given: {"mine": None} if function.__name__ == "look" else None)
    monkeypatch.setattr(deploying, "connected", cluster.connected)
    monkeypatch.setattr(deploying, "status", lambda name: None)
    monkeypatch.setattr(deploying, "of", lambda record: SimpleNamespace(wait_until_answering=lambda: None))
    records.keep(record_of())

    @contextmanager
    def after_another(tell):
        records.keep(record_of(order=Order(gpus=0.5, replicas=3)))
        yield

    monkeypatch.setattr(deploying, "changing", after_another)
    rollout.update("mine", replicas=2)
    assert records.get("mine").order == Order(gpus=0.5, replicas=2)


def listed(monkeypatch, *moments):
    """Let Serve list these states of ``mine``, one after the other; the last one for ever."""
    left = list(moments)

    def status():
        state = left.pop(0) if len(left) > 1 else left[0]
        overview = SimpleNamespace(status=state, deployments={}, message="")
        return SimpleNamespace(applications={} if state is None else {"mine": overview})

    monkeypatch.setattr(outcomes.serve, "status", status)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("end", [None, ApplicationStatus.DELETING])
@pytest.mark.parametrize("begin", [None, ApplicationStatus.DEPLOYING])
def test_what_is_deleted_while_it_loads_is_not_waited_for(monkeypatch, begin, end):
    monkeypatch.setattr(outcomes, "_LISTED_WITHIN_S", 0.5)
    listed(monkeypatch, begin, end)
    with pytest.raises(ConfigurationError, match="mine was deleted meanwhile"):
        outcomes.wait_until_running(["mine"], print, str)


def test_what_is_not_listed_yet_is_waited_for(monkeypatch):
    listed(monkeypatch, None, ApplicationStatus.DELETING, ApplicationStatus.DEPLOYING, ApplicationStatus.RUNNING)
    outcomes.wait_until_running(["mine"], print, str)


def test_who_interrupts_the_loading_hears_that_it_goes_on(monkeypatch):
    def loads_for_ever(function, *given):
        if function is not put and function.__name__ != "look":
            raise KeyboardInterrupt
        return {}

    cluster, said = Elsewhere(loads_for_ever), []
    monkeypatch.setattr(deploying, "connected", cluster.connected)
    with pytest.raises(KeyboardInterrupt):
        rollout.deploy(FILE, on_progress=said.append)
    assert said[-1] == "mine goes on loading: registry-serve describe deployment mine, or delete deployment mine."
    assert records.find("mine") is not None


def test_an_archive_is_kept_for_an_hour_by_who_may_need_it_again():
    folder = state_folder("code")
    recent, used, unused, spared = (folder / f"{name}.zip" for name in ("recent", "used", "unused", "spared"))
    long_ago = time.time() - 4000
    for each in (recent, used, unused, spared):
        each.write_bytes(b"")
        if each is not recent:
            os.utime(each, (long_ago, long_ago))
    assert records.spare(record_of(code=Code(archive=str(spared))))
    code.prune({str(used)})
    assert sorted(folder.iterdir()) == sorted([recent, used, spared])
    assert not records.spare(record_of(code=Code(archive=str(unused))))


def test_what_is_replaced_keeps_its_archive(tmp_path):
    archive = state_folder("code") / "a.zip"
    archive.write_bytes(b"")
    os.utime(archive, (1, 1))
    cluster = Elsewhere(lambda function, *given: {"mine": None})
    earlier = record_of(code=Code(archive=str(archive)))
    assert deploying._earlier("mine", earlier, cluster, print) == earlier
    code.prune(set())
    assert archive.exists()


# --- on another cluster ----------------------------------------------------------------------------------------------


def test_what_runs_on_another_cluster_is_not_called_stopped_or_deleted(listening):
    kept = record_of(address=listening)
    records.keep(kept)
    for end in (rollout.stop, rollout.delete):
        with pytest.raises(ConfigurationError, match=f"runs on another Ray cluster, at {listening}. Set RAY_ADDRESS"):
            end("mine")
    assert records.find("mine") == kept
    with pytest.raises(ConfigurationError, match="runs on another Ray cluster"):
        deploying._earlier("mine", record_of(address=listening, session="/there"), Elsewhere(), print)


def test_what_ran_on_a_cluster_that_is_gone_is_deleted(listening):
    records.keep(record_of(address=f"127.0.0.1:{free_port()}"))
    rollout.delete("mine")
    records.keep(record_of(address=listening, stopped=True))
    rollout.delete("mine")
    anew = Elsewhere()
    ending.refuse_elsewhere(record_of(address=anew.address, session="/there"), anew)
    assert records.find("mine") is None


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://127.0.0.1:10001", "address of the cluster's GCS: HOST:6379"),
        ("http://127.0.0.1:8265", "address of the cluster's GCS: HOST:6379"),
        ("127.0.0.1:1", "Nobody listens at 127.0.0.1"),
    ],
)
def test_an_address_that_is_no_cluster_is_told_at_once(monkeypatch, alone, address, said):
    monkeypatch.setenv("RAY_ADDRESS", address)
    records.keep(record_of())
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=said):
        rollout.status("mine")
    assert time.monotonic() - began < 10


def test_a_cluster_that_cannot_be_joined_tells_of_tokens(monkeypatch, alone, listening):
    def refuses(**options):
        raise ConnectionError("Ray gave up.")

    monkeypatch.setattr("ray.init", refuses)
    monkeypatch.setenv("RAY_ADDRESS", listening)
    for mode, said in (("", "RAY_AUTH_MODE=token is not set"), ("token", "RAY_AUTH_MODE=token is set")):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        with pytest.raises(ConfigurationError, match=rf"Ray gave up\. {said}"), connected(print):
            pass


def test_an_address_without_a_port_is_nobodys():
    assert not answers("")
    assert not answers("auto")


@pytest.mark.parametrize(("port", "said"), [(8000, []), (8123, []), (9000, ["port 9000 is not used"])])
def test_a_port_that_does_not_count_is_told(port, said):
    heard = []
    assert doors.front_door(Elsewhere(), Order(port=port), heard.append) == "http://127.0.0.1:8123"
    assert [each.partition(";")[0] for each in heard] == said
    assert all(each.endswith(".") for each in heard)


# --- what another release has written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [lambda told: told[:-9], lambda told: told.replace('"replicas": 1', '"replicas": "two"')]
)
def test_a_record_that_cannot_be_read_is_named_and_can_be_deleted(monkeypatch, damage):
    records.keep(record_of())
    path = state_folder("deployments") / "mine.json"
    path.write_text(damage(path.read_text()))
    for ask in (lambda: rollout.status("mine"), rollout.deployments, lambda: rollout.stop("mine")):
        with pytest.raises(
            ConfigurationError, match=r"mine\.json cannot be read.*`registry-serve delete deployment mine`"
        ):
            ask()
    cluster = Elsewhere()
    monkeypatch.setattr(ending, "connected", cluster.connected)
    rollout.delete("mine")
    assert cluster.asked == ["remove"]
    assert not path.exists()
    with pytest.raises(DeploymentNotFound):
        rollout.delete("mine")


def test_another_deployment_can_be_deleted_beside_a_record_that_cannot_be_read():
    records.keep(record_of())
    (state_folder("deployments") / "other.json").write_text("")
    rollout.delete("mine")
    assert not records.readable("other")


def test_a_cluster_of_another_release_is_named_and_can_be_ended(tmp_path):
    folder = tmp_path / "serve-x"
    folder.mkdir()
    path = state_folder() / "cluster.json"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as leader:
        import psutil

        born = psutil.Process(leader.pid).create_time()
        path.write_text(json.dumps({"leader": leader.pid, "born": born, "folder": str(folder), "new": 1}))
        with pytest.raises(ConfigurationError, match=f"cluster.json.*`kill {leader.pid}`"):
            living(print)
        leader.kill()
    assert living(print) is None
    assert not path.exists()
    assert not folder.exists()
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"cluster\.json cannot be read"):
        living(print)


def test_what_a_cluster_has_written_is_read_again():
    more = {"started": datetime.now(timezone.utc), "socket": "x", "key": "00", "host": "127.0.0.1", "port": 1}
    made = Background(address="a", session="s", leader=os.getpid(), born=1.0, folder="f", **more)
    assert Background.model_validate_json(made.model_dump_json()) == made


# --- the line --------------------------------------------------------------------------------------------------------


@pytest.fixture
def far_end(tmp_path):
    path = str(tmp_path / "line")
    with Listener(path, "AF_UNIX", authkey=b"k") as listener:
        threading.Thread(target=line.answer, args=(listener,), daemon=True).start()
        yield path


def tells(tell):
    tell("on it")


def test_an_error_of_who_listens_is_no_end_of_the_cluster(far_end):
    def full(doing):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        line.ask(far_end, b"k", tells, tell=full)


def test_nobody_at_the_other_end_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match="has ended unexpectedly"):
        line.ask(str(tmp_path / "nothing"), b"k", tells, tell=print)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_another_release_asks_for_is_answered_in_one_line(far_end):
    with Client(far_end, "AF_UNIX", authkey=b"k") as connection:
        connection.send_bytes(b"cregistry_serve.rollout.serving\nno_such_function\n.")
        kind, error = connection.recv()
    assert kind == "failed"
    assert "another release. Delete all deployments" in str(error)


# --- on a cluster ----------------------------------------------------------------------------------------------------

WAITING = """
import time
from pathlib import Path

from registry_serve.handlers import ModelHandlerInterface


class Waiting(ModelHandlerInterface):
    def __init__(self, go, **kwargs):
        while not Path(go).exists():
            time.sleep(0.1)

    def predict(self, model_requests):
        return model_requests
"""


@pytest.mark.cluster
@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", [rollout.delete, rollout.stop])
def test_a_deployment_that_is_ended_while_it_loads_is_no_longer_waited_for(cluster, tmp_path, end):
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "handler.py").write_text(WAITING)
    file = {
        **FILE,
        "name": "waiting",
        "integrations": [{"integration_type": "git_repo", "git_repo": str(tmp_path / "waiting")}],
        "model": {"model_handler": "waiting.handler.Waiting", "model_parameters": {"go": str(tmp_path / "go")}},
    }
    said, failed = [], []

    def deploy():
        try:
            rollout.deploy(file, on_progress=said.append)
        except ConfigurationError as error:
            failed.append(str(error))

    deploys = threading.Thread(target=deploy, daemon=True)
    deploys.start()
    while "Loading waiting" not in said:
        assert deploys.is_alive(), failed
        time.sleep(0.1)
    ends = threading.Thread(target=end, args=("waiting",), daemon=True)
    ends.start()
    time.sleep(1)
    (tmp_path / "go").touch()
    ends.join(60)
    deploys.join(20)
    verb = "deleted" if end is rollout.delete else "stopped"
    assert failed == [f"waiting was {verb} meanwhile."]
    assert [(each.name, each.state) for each in rollout.deployments()] == [("waiting", "stopped")][
        end is rollout.delete :
    ]
