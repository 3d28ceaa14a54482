"""``registry-serve run``: what it refuses before it starts, and what it starts, as real processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import pandas as pd
import psutil
import pytest
import requests
from mlflow.pyfunc import PythonModel

from registry_serve import cli, launch
from registry_serve.application import AppArgs
from registry_serve.cli.access import authorization
from registry_serve.cli.run import model_and_reference, run
from registry_serve.cli.serving import starting
from registry_serve.errors import ConfigurationError
from registry_serve.protocols.gate import ApiKeys
from registry_serve.rollout.outcomes import cause
from tests.mlflow_server import free_port
from tests.toys import Constant

cloudpickle.register_pickle_by_value(sys.modules[__name__])

COMMAND = Path(sys.executable).parent / "registry-serve"


class WhoAnswers(PythonModel):
    """Answers with the process that it is in."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [{"process": os.getpid()} for _ in range(len(model_input))]


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("toy", ("toy", None)),
        ("toy@champion", ("toy", "@champion")),
        ("toy/3", ("toy", "3")),
        ("toy/champion", ("toy", "champion")),
        ("toy@home@champion", ("toy@home", "@champion")),
        ("toy@home/3", ("toy@home", "3")),
        ("@toy", ("@toy", None)),
        ("models:/toy/3", ("toy", "3")),
        ("models:/toy@champion", ("toy", "@champion")),
        ("models:/my%20toy/latest", ("my toy", "latest")),
    ],
)
def test_a_model_and_its_version_are_written_in_one_word(written, meant):
    assert model_and_reference(written) == meant


@pytest.mark.parametrize("written", ["", "toy/", "/3", "toy/3/4", "toy@", "toy/a b", "models:/"])
def test_what_names_no_version_is_refused(written):
    with pytest.raises(ConfigurationError, match="names no model and version"):
        model_and_reference(written)


def test_every_argument_of_the_application_is_an_option():
    offered = set(run.__annotations__) | {"version"}  # the version is written with the model
    assert set(AppArgs.model_fields) <= offered


# --- what is refused before anything starts --------------------------------------------------------------------------


@pytest.fixture
def refuse(monkeypatch, capsys, shelf):
    """Run the command in this process; return the one line that it says."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("registry_serve.cli.run.serve_until_stopped", lambda *given, **options: pytest.fail("started"))

    def ask(*words, uri=shelf.uri):
        capsys.readouterr()  # what MLflow said so far
        # A port of its own first: another test may listen on the one that the command would take.
        given = ["--port", str(free_port()), *words, "--tracking-uri", uri]
        monkeypatch.setattr(sys, "argv", ["registry-serve", "run", *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        return said.err

    return ask


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no registered model 'nothing'"),
        (["toy@nobody"], "no version or alias '@nobody'"),
        (["toy/99"], "Available: @challenger, @champion, 6"),
        (["toy", "--versions", "1,2", "--compatibility", "similar"], "--compatibility: Input should be 'exact'"),
        (["toy", "--limits", '{"pace": 1}'], "--limits: no such setting: pace"),
        (["toy", "--limits", '{"request_timeout_s": 0}'], "request_timeout_s must be greater than 0"),
        (["toy", "--max-models-per-replica", "many"], "--max-models-per-replica: "),
        (["toy", "--replicas", "0"], "'--replicas'"),
        (["toy", "--colour", "red"], "No such option: --colour"),
        (["toy", "--api-key-file", "/nowhere"], "'/nowhere' cannot be read"),
        (["toy", "--host", "0.0.0.0"], "Give --api-key-file FILE, or --no-auth"),
        (["toy", "--host", "192.0.2.77", "--no-auth"], "--host is 127.0.0.1 or 0.0.0.0, not 192.0.2.77"),
        (["toy", "--no-auth", "--api-key-file", __file__], "contradict each other"),
        (["toy", "--max-models-per-replica", "3", "--cache", '{"max_models": 2}'], "Give one of them"),
        (["toy", "--environment", "isolate", "--isolation", "false"], "isolation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_served_is_one_line(refuse, words, said):
    assert said in refuse(*words)


def test_a_model_without_a_signature_is_one_line(refuse, shelf):
    shelf.log("unsigned", Constant(1), signature=None)
    assert "was logged without a signature" in refuse("unsigned")


def test_a_registry_that_is_down_is_one_line_without_its_password(refuse):
    said = refuse("toy", uri=f"http://me:secret@127.0.0.1:{free_port()}")
    assert "does not answer" in said
    assert "secret" not in said


def test_a_taken_port_is_one_line(refuse):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} is taken" in refuse("toy", "--port", port)


def test_a_key_is_sent_as_it_stands_in_its_file(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("\ufeffключ-é\n", "utf-8")
    sent = authorization(file)["authorization"]
    assert sent.encode("latin-1").decode() == "Bearer ключ-é"
    assert ApiKeys.read(file).open(sent)


def test_a_cluster_that_runs_already_is_not_joined(refuse, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert "serve run registry_serve:app model=toy" in refuse("toy")


# --- the parts -------------------------------------------------------------------------------------------------------


def test_variables_that_are_set_already_win(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "7")
    monkeypatch.delenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S")
    made = launch.fast_environment(tmp_path, planned(replicas=3, drain_s=300), 1000)
    assert made["RAY_SERVE_HAPROXY_NBTHREAD"] == "7"
    assert made["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert made["PATH"] == os.environ["PATH"]
    assert int(made["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > 1000
    assert int(made["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > 300
    assert made["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] == "60"


def test_two_clusters_share_neither_files_nor_ports(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port not in launch.free_ports([port, 0, 0])
    free = launch.free_ports([0])
    assert launch.free_ports(free) == free
    assert launch.free_ports(free, but=free) != free
    assert len(set(launch.free_ports(free * 3))) == 3
    one, other = (launch.fast_environment(tmp_path / name, planned(), 1) for name in made(tmp_path, "a", "b"))
    names = [name for name in one if name.startswith("RAY_SERVE_HAPROXY") and "/" in one[name]]
    assert len(names) == 6
    assert all(one[name] != other[name] for name in names)


def planned(**options):
    return launch.Launch(applications=(), **options)


def made(folder, *names):
    for name in names:
        (folder / name).mkdir()
    return names


TRACE = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:toy:toy.initialize_and_get_metadata()\x1b[39m (pid=8821, ip=192.0.2.2)
  File "/lib/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/srv/model.py", line 3, in load
ValueError: no weights

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/lib/cache.py", line 3, in load
registry_serve.errors.LoadFailed: Version 5 of 'toy' cannot be loaded: it raised ValueError.
"""


def test_of_two_that_start_together_one_keeps_off_the_usual_ports(tmp_path, monkeypatch):
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(tmp_path / "state"))
    with starting() as (first, started):
        with starting() as (second, _):
            assert (first, second) == (True, False)
        started()
        with starting() as (third, _):
            assert third
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["starting.lock"]


def test_a_user_without_a_home_folder_can_start(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGISTRY_SERVE_STATE", str(tmp_path / "file" / "state"))
    with starting() as (usual_ports, started):
        assert not usual_ports
        started()


def test_the_cause_of_a_failed_start_is_one_line():
    assert cause(TRACE) == "Version 5 of 'toy' cannot be loaded: it raised ValueError. ValueError: no weights"
    assert cause(TRACE.split("\n\nThe above")[0]) == "ValueError: no weights"
    assert cause("The worker\ndied.") == "The worker died."


# --- on clusters of their own ----------------------------------------------------------------------------------------


class Running:
    """The command as a process, and what it has printed."""

    def __init__(self, folder, *words):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.errors = folder / f"errors-{self.port}.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [COMMAND, "run", *words, "--port", str(self.port)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**environment, "NO_COLOR": "1"},
                start_new_session=True,
            )
        self.printed = ""

    def until(self, text):
        for line in self.process.stdout:
            self.printed += line
            if text in line:
                return self
        raise AssertionError(self.printed + self.errors.read_text())

    def end(self, *signals):
        for each in signals:
            self.process.send_signal(each)
            time.sleep(0.5)
        self.printed += self.process.communicate(timeout=120)[0]
        return self.process.returncode

    def sessions(self):
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def fact(self, name):
        return next(line.split(": ", 1)[1] for line in self.printed.splitlines() if line.startswith(f"  {name}: "))

    def line_to_try(self):
        return next(line.strip() for line in self.printed.splitlines() if line.strip().startswith("curl "))

    def ask(self, text="hello", **headers):
        return requests.post(f"{self.address}/serve", json={"prompt": text}, headers=headers, timeout=60)


@contextmanager
def running(folder, *words):
    process = Running(folder, *words)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end(signal.SIGINT, signal.SIGINT)


def session(pid):
    try:
        return os.getsid(pid)
    except OSError:
        return None


def left_of(sessions):
    return [pid for pid in psutil.pids() if session(pid) in sessions]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys of mine") / "keys.txt"
    file.write_text("# ours\n\nopen-sesame\nanother\n")
    return file


@pytest.fixture(scope="module")
def served(shelf, keys, tmp_path_factory):
    """``toy`` with API keys."""
    folder = tmp_path_factory.mktemp("run")
    with running(folder, "toy", "--tracking-uri", shelf.uri, "--api-key-file", str(keys)) as process:
        yield process.until("Ctrl-C ends it")


@pytest.mark.cluster
@pytest.mark.slow
def test_it_says_what_it_serves_once_it_answers(served, keys):
    assert requests.get(f"{served.address}/health/ready", timeout=10).status_code == 200
    assert served.fact("address") == served.address
    assert served.fact("default version") == "1, @champion"
    assert served.fact("compatible versions") == "6, 5, 4, 2, 1"
    assert served.fact("API keys") == str(keys)
    assert Path(served.fact("logs")).is_dir()
    assert requests.get(served.fact("documentation"), headers=opened(), timeout=10).status_code == 200
    said = [line for line in served.printed.splitlines() if line.endswith(" ...")]
    assert said[:3] == ["Starting Ray ...", "Starting Ray Serve ...", "Loading toy version 1 ..."]


@pytest.mark.cluster
@pytest.mark.slow
def test_the_line_to_try_works_and_shows_no_key(served):
    line = served.line_to_try()
    assert "open-sesame" not in line
    answered = subprocess.run(f"{line} -s", shell=True, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(answered.stdout) == [{"text": "one:hello"}]
    assert shlex.split(line)[2] == "-d"


@pytest.mark.cluster
@pytest.mark.slow
def test_the_log_has_the_cause_of_an_error_under_its_request_id(served):
    failed = served.ask("raise", **opened())
    assert failed.status_code == 500
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        said = "".join(file.read_text() for file in Path(served.fact("logs")).glob("replica_*"))
        if failed.json()["request_id"] in said and "\nRuntimeError: a secret in /srv/models\n" in said:
            break
        time.sleep(0.2)
    else:
        raise AssertionError(said)
    assert "Loaded version 1 of toy" in said


@pytest.mark.cluster
@pytest.mark.slow
def test_without_a_key_nobody_comes_in(served):
    assert served.ask().status_code == 401


@pytest.mark.cluster
@pytest.mark.slow
def test_front_door_and_replicas_listen_on_loopback_only(served):
    sessions = served.sessions()
    listening = defaultdict(set)
    for each in psutil.net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN and each.pid and session(each.pid) in sessions:
            listening[each.laddr.port].add(each.laddr.ip)
    assert listening[served.port] == {"127.0.0.1"}
    replicas = [port for port in listening if 30000 <= port < 31000]
    assert replicas
    assert all(listening[port] == {"127.0.0.1"} for port in replicas)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_second_run_gives_each_version_one_replica_and_ends_at_once_when_asked_twice(served, shelf, tmp_path):
    versions = [shelf.log("who", WhoAnswers()) for _ in range(9)]
    words = ["who/1", "--tracking-uri", shelf.uri, "--replicas", "3", "--max-models-per-replica", "10"]
    with running(tmp_path, *words) as process:
        process.until("Ctrl-C ends it")
        assert process.fact("replicas") == "3"

        def answerers(times=8, **headers):
            return {process.ask(**headers).json()[0]["process"] for _ in range(times)}

        deadline = time.monotonic() + 30
        while len(answerers(30)) < 3:  # without a version, they take turns
            assert time.monotonic() < deadline
        homes = {version: answerers(serve_multiplexed_model_id=version) for version in versions}
        assert all(len(each) == 1 for each in homes.values())
        assert len(set.union(*homes.values())) > 1
        for version in versions:
            assert answerers(**{"Serve-Multiplexed-Model-Id": f"0{version}"}) == homes[version]
        assert served.ask(**opened()).status_code == 200  # the first is still there

        sessions = process.sessions()
        assert process.end(signal.SIGINT, signal.SIGINT) == 130
        assert "Ended at once." in process.printed
        assert left_of(sessions) == []


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_sigterm_lets_requests_in_flight_end_and_leaves_nothing_behind(served):
    sessions, answers = served.sessions(), []
    caller = threading.Thread(target=lambda: answers.append(served.ask("sleep 4", **opened())))
    caller.start()
    time.sleep(1)
    assert served.end(signal.SIGTERM) == 0
    caller.join()
    assert answers[0].status_code == 200
    assert answers[0].json() == [{"text": "one:sleep 4"}]
    assert served.printed.rstrip().endswith("Stopped.")
    assert served.errors.read_text() == ""
    assert left_of(sessions) == []


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_that_start_together_both_serve_and_drain_although_nobody_reads_what_they_print(shelf, tmp_path):
    words = ["toy", "--tracking-uri", shelf.uri]
    with running(tmp_path, *words) as one, running(tmp_path, *words) as other:
        for process in (one, other):
            process.until("Ctrl-C ends it")
        sessions, answers = one.sessions() | other.sessions(), []
        callers = [
            threading.Thread(target=lambda each=each: answers.append(each.ask("sleep 3"))) for each in (one, other)
        ]
        for caller in callers:
            caller.start()
        time.sleep(1)
        for process in (one, other):
            process.process.stdout.close()
            process.process.send_signal(signal.SIGINT)
        assert [process.process.wait(60) for process in (one, other)] == [0, 0]
        for caller in callers:
            caller.join()
        assert [answer.json() for answer in answers] == [[{"text": "one:sleep 3"}]] * 2
        assert left_of(sessions) == []


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_default_version_that_cannot_be_loaded_is_told_at_once(shelf, tmp_path):
    with running(tmp_path, "toy/5", "--tracking-uri", shelf.uri) as process:
        process.until("Loading toy version 5")
        sessions = process.sessions()
        began = time.monotonic()
        assert process.process.wait(60) == 1
        assert time.monotonic() - began < 45
        said = process.errors.read_text()
        assert said.startswith("error: Version 5 of 'toy' cannot be loaded")
        assert "a secret in /srv/weights" in said  # the one who starts it may know
        assert said.count("\n") == 1
        assert left_of(sessions) == []


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_too_few_gpus_are_told_at_once(shelf, tmp_path):
    with running(tmp_path, "toy", "--tracking-uri", shelf.uri, "--replicas", "2", "--gpus", "1000") as process:
        assert process.process.wait(90) == 1
        said = process.errors.read_text()
        assert "room for 0 replicas with 1000 each, and you ask for 2" in said
        assert said.count("\n") == 1


def opened():
    return {"Authorization": "Bearer open-sesame"}
