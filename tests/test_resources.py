"""What replicas take of a cluster, and on which device they then are."""

import json
import os
import subprocess
import sys

import pytest

from registry_serve.errors import ConfigurationError
from registry_serve.resources import Resources, require_where_ray_runs, room
from registry_serve.rollout.serving import _surge_percent

#: Runs on a cluster with two GPUs that are not there: Ray counts what it is told.
SCRIPT = """
import json, os, time
import ray
from ray import serve
from registry_serve.errors import ResourcesMissing
from registry_serve.resources import Resources, require, require_where_ray_runs, use_assigned_device

def refused(resources, replicas=1):
    began = time.monotonic()
    try:
        require(resources, replicas)
    except ResourcesMissing as error:
        return [str(error), time.monotonic() - began]

def seen():
    return {"device": use_assigned_device(), **{name: os.environ.get(name) for name in NAMES}}

NAMES = ("CUDA_VISIBLE_DEVICES", "MLFLOW_DEFAULT_PREDICTION_DEVICE")

@serve.deployment
class Replica:
    def __init__(self):
        self.found = seen()
        self.gpus = [str(each) for each in ray.get_gpu_ids()]

    async def look(self):
        return {**self.found, "assigned": ",".join(self.gpus)}

class Actor:
    def look(self):
        return seen()

ray.init(
    num_cpus=4, num_gpus=2, resources={"accelerator_type:A100": 2}, include_dashboard=False, log_to_driver=False,
    object_store_memory=80 * 2**20,
)
serve.start(http_options={"location": "NoServer"})  # what is asked is asked through handles
told = {}
for name, resources in {
    "whole": Resources(gpus=1, gpu_type="a100_40gb"), "half": Resources(gpus=0.5), "none": Resources(cpus=0.1)
}.items():
    replica = Replica.options(ray_actor_options=resources.actor_options())
    handle = serve.run(replica.bind(), name=name, route_prefix=None)
    told[name] = handle.look.remote().result(timeout_s=30)
chosen = ray.remote(Actor).options(runtime_env={"env_vars": {NAMES[1]: "cuda:1"}}).remote()
told["chosen"] = ray.get(chosen.look.remote())
fitting = {Resources(gpus=1): 2, Resources(gpus=0.5, gpu_type="A100"): 4, Resources(): 9}
told["fits"] = [refused(resources, replicas) for resources, replicas in fitting.items()]
told["three"] = refused(Resources(gpus=3))
told["replicas"] = refused(Resources(gpus=0.5), 5)
told["type"] = refused(Resources(gpus=1, gpu_type="h100_80gb"))
serve.shutdown()
ray.shutdown()

ray.init(num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
try:
    require_where_ray_runs(Resources(gpus=1))
except ResourcesMissing as error:
    told["no gpu"] = str(error)
told["no gpu of a type"] = refused(Resources(gpus=1, gpu_type="A100"))
print(json.dumps(told))
"""


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf"), 0.00001])
def test_numbers_of_gpus_that_make_no_sense_are_refused(gpus):
    with pytest.raises(ConfigurationError, match="gpus"):
        Resources(gpus=gpus)
    with pytest.raises(ConfigurationError, match="cpus"):
        Resources(cpus=-1)


def test_the_type_of_a_gpu_is_named_as_ray_names_it():
    assert Resources(cpus=2, gpus=0.5, gpu_type="a100_40gb").actor_options() == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "accelerator_type": "A100",
    }
    assert Resources(gpus=1, gpu_type="GeForce-RTX-5090").actor_options()["accelerator_type"] == "GeForce-RTX-5090"
    assert Resources(gpu_type="A100").actor_options() == {}


@pytest.mark.parametrize(
    ("nodes", "gpus", "gpu_type", "fit"),
    [
        ([4.0], 1, None, 4),
        ([4.0], 3, None, 1),
        ([1.0, 1.0], 2, None, 0),
        ([3.0, 3.0], 2, None, 2),
        ([1.0, 2.0], 0.5, None, 6),
        ([1.0], 0.1, None, 10),
        ([1.0], 0.3, None, 3),
        ([1.0], 0.6, None, 1),
        ([], 0.6, None, 0),
        ([4.0], 1, "L4", 4),
        ([4.0], 1, "T4", 0),
    ],
)
def test_replicas_fit_only_where_all_their_gpus_are_on_one_node(nodes, gpus, gpu_type, fit):
    resources = [{"CPU": 8.0, "GPU": each, "accelerator_type:L4": 1.0} for each in nodes]
    assert room([{"CPU": 4.0}, *resources], Resources(gpus=gpus, gpu_type=gpu_type)) == fit


@pytest.mark.parametrize(
    ("resources", "replicas", "percent"),
    [
        (Resources(gpus=4, processes=4), 1, 0),
        (Resources(gpus=2, processes=2), 1, 100),
        (Resources(gpus=2, processes=2), 2, 50),
        (Resources(cpus=12, processes=2), 1, 0),
        (Resources(processes=10), 1, 0),
        (Resources(processes=4), 2, 100),
        (Resources(gpus=0.5), 8, 50),
        (Resources(cpus=4), 4, 50),
    ],
)
def test_new_replicas_start_beside_the_earlier_ones_only_if_all_their_processes_fit(
    monkeypatch, resources, replicas, percent
):
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert _surge_percent(resources, replicas) == percent


def test_where_no_cluster_is_known_nothing_is_required():
    code = "from registry_serve.resources import *; require_where_ray_runs(Resources(gpus=1000))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert require_where_ray_runs(Resources()) is None


@pytest.fixture(scope="module")
def told():
    """What the script found."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    for name in ("CUDA_VISIBLE_DEVICES", "MLFLOW_DEFAULT_PREDICTION_DEVICE", "RAY_ADDRESS"):
        environment.pop(name, None)
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=200, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.cluster
@pytest.mark.slow
def test_a_replica_sees_the_gpus_that_it_was_given_and_no_others(told):
    for name in ("whole", "half"):
        assert told[name]["device"] == "cuda"
        assert told[name]["CUDA_VISIBLE_DEVICES"] == told[name]["assigned"]
        assert told[name]["assigned"] in ("0", "1")
        # MLflow's flavours take the first GPU that they see; no value of the variable suits all of them.
        assert told[name]["MLFLOW_DEFAULT_PREDICTION_DEVICE"] is None
    assert told["whole"]["assigned"] != told["half"]["assigned"]
    assert (told["none"]["device"], told["none"]["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


@pytest.mark.cluster
@pytest.mark.slow
def test_a_device_that_somebody_chose_stays_chosen(told):
    assert told["chosen"]["device"] == "cuda:1"
    assert told["chosen"]["CUDA_VISIBLE_DEVICES"] is None


@pytest.mark.cluster
@pytest.mark.slow
def test_what_the_cluster_can_never_hold_is_told_at_once(told):
    assert told["fits"] == [None, None, None]
    for name, said in {
        "three": "2 GPUs, room for 0 replicas with 3 each, and you ask for 1.",
        "replicas": "2 GPUs, room for 4 replicas with 0.5 each, and you ask for 5.",
        "type": "no GPU of type H100 (but A100), room for 0 replicas",
    }.items():
        sentence, seconds = told[name]
        assert said in sentence
        assert seconds < 1
    assert told["no gpu"].startswith("The cluster has no GPU, room for 0 replicas with 1 each")
    assert told["no gpu of a type"][0].startswith("The cluster has no GPU of type A100, room")
