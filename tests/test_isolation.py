"""Versions in a process of their own: same answers, no mixing of code, nothing left behind."""

import datetime as dt
import decimal
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import ray
import requests
from ray import serve

from registry_serve import CodeConflict, LoadFailed, LoadPolicy, deployment_from_model_name
from registry_serve.models import ModelLost, RefusedByModel
from registry_serve.models.attempts import Attempts
from registry_serve.models.isolated import RaisedInChild, load_isolated
from registry_serve.models.loading import Loader
from registry_serve.models.pyfunc import load_pyfunc
from registry_serve.policies import RegistryAddress
from registry_serve.registry import Registry
from registry_serve.signature import answer
from tests.toys import Broken, Constant, Shout

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.cluster


TEXT = mlflow.models.infer_signature(pd.DataFrame({"prompt": ["a"]}))


class Speaks(mlflow.pyfunc.PythonModel):
    """Answers with a word from a module that it brings along."""

    def __init__(self, module):
        self.module = module

    def predict(self, context, model_input: pd.DataFrame, params=None):
        import importlib

        word = importlib.import_module(f"{self.module}.words").WORD
        return [f"{word}:{value}" for value in model_input["prompt"]]


class Does(mlflow.pyfunc.PythonModel):
    """Calls a function."""

    def __init__(self, function, load=None):
        self.function = function
        self.load = load

    def load_context(self, context):
        if self.load is not None:
            self.load()

    def predict(self, context, model_input, params=None):
        return self.function(model_input)


def log_speaker(shelf, folder, name, word):
    package = folder / word / f"{name}_words"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text(f"WORD = {word!r}\n")
    # Without an example: MLflow would try it here, and import the module.
    return shelf.log(name, Speaks(package.name), code_paths=[str(package)], signature=TEXT)


def text_frame(*values):
    return pd.DataFrame({"prompt": pd.Series(values, dtype=object)})


def ends(pid, within_s=20):
    try:
        psutil.Process(pid).wait(within_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.fixture
def fetch(shelf):
    """Gives a version and its directory."""
    registry = Registry(RegistryAddress(shelf.uri))

    def make(name, number):
        version = registry.version(name, number)
        return version, registry.download(version).directory

    return make


@pytest.fixture
def isolated(cluster, shelf, fetch):
    """Loads a model in a process of its own, and closes it after the test."""
    loaded = []

    def make(model, name="isolated", signature=TEXT):
        loaded.append(load_isolated(*fetch(name, shelf.log(name, model, signature=signature))))
        return loaded[-1]

    yield make
    for each in loaded:
        each.close()


# --- whose code runs -------------------------------------------------------------------------------------------------


def test_versions_with_the_same_module_names_run_each_their_own_code(cluster, shelf, fetch, tmp_path):
    words = ["one", "two", "three"]
    numbers = [log_speaker(shelf, tmp_path, "three_speak", word) for word in words]
    loader = Loader(LoadPolicy(), load_isolated, Attempts(tmp_path / "loading"))
    models = [loader.load(*fetch("three_speak", number)) for number in numbers]
    answers = {word: [] for word in words}

    def ask(word, model):
        for turn in range(50):
            answers[word] += model.predict(text_frame(str(turn)), None)

    threads = [threading.Thread(target=ask, args=each) for each in zip(words, models, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {word: [f"{word}:{turn}" for turn in range(50)] for word in words}
    keys = [fetch("three_speak", number)[0].key for number in numbers]
    assert [loader.describe(key)["isolated"] for key in keys] == [False, True, True]
    for model in models:
        model.close()


def test_without_isolation_a_clash_is_refused_with_a_way_out(cluster, shelf, fetch, tmp_path):
    numbers = [log_speaker(shelf, tmp_path, "no_isolation", word) for word in ("one", "two")]
    loader = Loader(LoadPolicy(isolation=False), load_isolated, Attempts(tmp_path / "loading"))
    model = loader.load(*fetch("no_isolation", numbers[0]))
    with pytest.raises(CodeConflict, match="isolation=True"):
        loader.load(*fetch("no_isolation", numbers[1]))
    assert model.predict(text_frame("a"), None) == ["one:a"]


def test_a_module_that_the_server_needs_is_refused_also_in_a_process_of_its_own(cluster, shelf, fetch, tmp_path):
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text("")
    number = shelf.log("shadow_yaml", Constant([1]), code_paths=[str(tmp_path / "yaml")])
    with pytest.raises(LoadFailed, match=r"'yaml'.*rename it"):
        Loader(LoadPolicy(), load_isolated, Attempts(tmp_path / "loading")).load(*fetch("shadow_yaml", number))


# --- the same answers ------------------------------------------------------------------------------------------------

ANSWERS = [
    pd.DataFrame(
        {
            "a": [1.5, None],
            "b": ["x", None],
            "c": pd.to_datetime(["2026-01-01", None]),
            "d": pd.Categorical(["k", "l"]),
            "e": pd.to_datetime(["2026-01-01", "2026-01-02"]).tz_localize("Europe/Berlin"),
            "f": pd.array([1, None], dtype="Int64"),
        },
        index=[3, 4],
    ),
    pd.Series([1, 2], name="s"),
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(["a", None], dtype=object),
    {"a": [1, None], "b": {"c": b"\x00\xff"}},
    [dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc), dt.date(2026, 1, 2), np.datetime64("2026-01-03"), pd.NaT],
    [decimal.Decimal("1.10"), np.int64(3), float("nan"), (1, 2), {3}],
    None,
]


@pytest.fixture(scope="module")
def constants(cluster, shelf):
    """A model that answers with one of ANSWERS, in this process and in its own."""
    registry = Registry(RegistryAddress(shelf.uri))
    model = Does(lambda frame: ANSWERS[int(frame["prompt"].iloc[0])])
    version = registry.version("constants", shelf.log("constants", model, signature=TEXT))
    directory = registry.download(version).directory
    models = load_pyfunc(version, directory), load_isolated(version, directory)
    yield models
    models[1].close()


@pytest.mark.parametrize("which", range(len(ANSWERS)))
def test_answers_are_the_same_as_in_the_servers_process(constants, which):
    here, there = (model.predict(text_frame(str(which)), None) for model in constants)
    assert type(here) is type(there)
    assert cloudpickle.dumps(here) == cloudpickle.dumps(there) or repr(here) == repr(there)
    if isinstance(here, pd.DataFrame):
        pd.testing.assert_frame_equal(here, there)


@dataclass
class Own:
    """A class that only the model has."""

    value: int


def test_objects_of_the_models_own_classes_become_plain_values(isolated):
    model = isolated(Does(lambda frame: [Own(1), {"deep": Own(2)}]))
    assert answer(model.predict(text_frame("a", "b"), None), 2, None) == [{"value": 1}, {"deep": {"value": 2}}]


def test_a_model_may_change_what_it_is_given(isolated):
    def doubles(values):
        values *= 2.0
        return float(values.sum())

    model = isolated(Does(doubles), signature=mlflow.models.infer_signature(np.ones((1, 1))))
    assert model.predict(np.ones((300_000, 1)), None) == 600_000.0


def test_large_inputs_and_answers_leave_nothing_in_the_object_store(isolated):
    import ray
    from ray.util.state import list_objects

    model = isolated(Does(lambda frame: frame["prompt"].tolist()))
    frame = text_frame(*["x" * 1000] * 1000)
    for _ in range(20):
        assert len(model.predict(frame, None)) == 1000
    address = ray.get_runtime_context().gcs_address  # other clusters may run on this machine
    listed = list_objects(address=address, raise_on_missing_output=False)
    held = [each for each in listed if each.object_size > 500_000]
    assert held == []


@pytest.mark.parametrize("gpus", ["", "1", "2,3"])
def test_it_sees_the_gpus_of_its_parent_and_as_many_threads(isolated, monkeypatch, gpus):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    model = isolated(Does(lambda frame: {each: os.environ.get(each) for each in frame["prompt"]}))
    seen = model.predict(text_frame("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"), None)
    assert seen == {"CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "3"}


def test_each_model_has_a_process_that_ran_nothing_before(isolated):
    first = isolated(Does(lambda frame: os.getpid()), "fresh")
    second = isolated(Does(lambda frame: os.getpid()), "fresh")
    pids = {first.predict(text_frame("a"), None), second.predict(text_frame("a"), None)}
    assert pids == {first.pid, second.pid}
    assert len(pids | {os.getpid()}) == 3


# --- failures --------------------------------------------------------------------------------------------------------


class Unpicklable(Exception):
    """Cannot be sent anywhere."""

    def __init__(self):
        super().__init__("a secret")
        self.lock = threading.Lock()


def raise_unpicklable(frame):
    raise Unpicklable


def test_whatever_the_model_raises_arrives_and_its_process_lives_on(isolated):
    model = isolated(Shout("s"))
    for order in ("raise", "exit", "stop"):
        with pytest.raises(RaisedInChild, match="in obey"):
            model.predict(text_frame(order), None)
    assert model.predict(text_frame("a"), None) == [{"text": "s:a"}]
    for function in (raise_unpicklable, lambda frame: threading.Lock()):
        odd = isolated(Does(function), "odd")
        for _ in range(2):
            with pytest.raises(RaisedInChild, match=r"Unpicklable|JSON form"):
                odd.predict(text_frame("a"), None)


def test_a_refusal_by_the_model_stays_one(isolated):
    def refuses(frame):
        raise mlflow.MlflowException.invalid_parameter_value("no")

    with pytest.raises(RefusedByModel) as caught:
        isolated(Does(refuses)).predict(text_frame("a"), None)
    assert "refuses" in str(caught.value.__cause__)


def test_a_version_that_cannot_be_loaded_says_the_same_as_in_the_servers_process(isolated):
    with pytest.raises(LoadFailed, match="loading raised RuntimeError") as caught:
        isolated(Broken())
    assert "a secret in /srv/weights" in str(caught.value.__cause__)
    with pytest.raises(LoadFailed, match="loading raised SystemExit"):
        isolated(Does(None, load=lambda: sys.exit(3)))


def test_a_process_that_dies_while_it_loads_is_a_failed_load(isolated):
    with pytest.raises(LoadFailed, match="the process of its own that was to load it ended"):
        isolated(Does(None, load=lambda: os._exit(3)))


def test_a_process_that_dies_is_told_apart_from_a_model_that_fails(isolated):
    model = isolated(Does(lambda frame: time.sleep(60)))
    killer = threading.Timer(1.0, os.kill, (model.pid, signal.SIGKILL))
    killer.start()
    for _ in range(2):
        with pytest.raises(ModelLost):
            model.predict(text_frame("a"), None)
    model.close()
    exits = isolated(Does(lambda frame: os._exit(3)), "exits")
    with pytest.raises(ModelLost):
        exits.predict(text_frame("a"), None)


def test_closing_ends_the_process_once(isolated):
    model = isolated(Shout("s"))
    assert not ends(model.pid, 0.2)
    model.close()
    assert ends(model.pid, 0.2)
    model.close()


def test_closing_ends_a_process_that_hangs(isolated):
    model = isolated(Does(lambda frame: time.sleep(600)))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(model.predict, text_frame("a"), None)
        time.sleep(1)
        model.close()
        assert ends(model.pid, 0.2)
        assert isinstance(asking.exception(20), ModelLost)


def test_a_killed_parent_leaves_no_process_behind(cluster, shelf, fetch):
    loaded = pickle.dumps(fetch("orphan", shelf.log("orphan", Shout("s"), signature=TEXT)))

    @ray.remote(num_cpus=0)
    class Parent:
        def load(self):
            self.model = load_isolated(*pickle.loads(loaded))
            return os.getpid(), self.model.pid

    parent = Parent.remote()
    pid, child = ray.get(parent.load.remote())
    os.kill(pid, signal.SIGKILL)
    assert ends(child)


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture
def speakers(cluster, shelf, tmp_path):
    """Serves a model whose versions bring modules of the same name; gives its address."""
    names = []

    def make(name, words, **options):
        for word in words:
            log_speaker(shelf, tmp_path, name, word)
        names.append(name)
        deployment = deployment_from_model_name(name, tracking_uri=shelf.uri, **options)
        serve.run(deployment.bind(), name=name, route_prefix=f"/{name}")
        return f"{cluster.address}/{name}"

    yield make
    for name in names:
        serve.delete(name)


def ask(address, version, value="a"):
    return requests.post(f"{address}/versions/{version}/serve", json={"prompt": value}, timeout=60)


def test_one_endpoint_answers_with_each_versions_own_code(speakers):
    words = {"1": "one", "2": "two", "3": "three"}
    address = speakers("endpoint_speaks", words.values(), max_models_per_replica=3)
    asked = [(version, str(turn)) for turn in range(100) for version in words]
    with ThreadPoolExecutor(12) as pool:
        answered = list(pool.map(lambda each: ask(address, *each).json(), asked))
    assert answered == [[f"{words[version]}:{value}"] for version, value in asked]
    described = requests.get(f"{address}/model", timeout=30).json()["versions"]
    assert {each["version"]: each["environment"]["isolated"] for each in described} == {
        "1": False,
        "2": True,
        "3": True,
    }
    assert all(each["environment"]["policy"] == "warn" for each in described)


def test_a_version_that_makes_room_takes_its_process_along(speakers):
    address = speakers("room_speaks", ["one", "two", "three"], max_models_per_replica=2)
    before = children()
    assert ask(address, "2").json() == ["two:a"]
    (second,) = children() - before
    assert ask(address, "3").json() == ["three:a"]
    assert ends(second)
    assert len(children() - before) == 1


def test_without_isolation_the_endpoint_names_the_conflict(speakers):
    address = speakers("refusing_speaks", ["one", "two"], isolation=False)
    refused = ask(address, "2")
    assert (refused.status_code, refused.json()["code"]) == (500, "code_conflict")
    assert ask(address, "1").json() == ["one:a"]


def children():
    """The processes of all isolated models on this machine."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if b"REGISTRY_SERVE_ISOLATED=" in file.read():
                    found.add(int(pid))
        except OSError:
            continue
    return found
