"""Replicas that are killed, replaced and taken away under load. Each test says what may fail; nothing else does."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from ray import serve

from registry_serve import Limits, deployment_from_model_name
from tests.load import Load, Orders, ask, eventually, served, start
from tests.test_run import running

pytestmark = pytest.mark.cluster

VERSIONS = ("1", "2", "3", "4", "5", "6")


@pytest.fixture(scope="module")
def orders(shelf, tmp_path_factory):
    """``crew``: six versions that answer with their own number."""
    orders = Orders(tmp_path_factory.mktemp("orders") / "crew")
    for tag in VERSIONS:
        shelf.log("crew", orders.model(tag))
    return orders


@pytest.fixture(scope="module")
def crew(shelf, orders):
    """Make a deployment of it."""
    return lambda **limits: deployment_from_model_name("crew", tracking_uri=shelf.uri, limits=Limits(**limits))


@pytest.fixture(scope="module")
def address(cluster, crew):
    """It is served by two replicas."""
    with served(cluster, "crew", crew(), num_replicas=2) as address:
        yield address


def pids(address, count=2):
    """Return the processes of all replicas."""
    found = set()
    with ThreadPoolExecutor(8) as pool:
        while len(found) < count:
            found |= {each.pid for each in pool.map(lambda _: ask(address), range(16))}
    return found


def test_every_answer_is_of_the_version_asked_for_while_versions_come_and_go(address, orders):
    """Nothing may fail."""
    replicas, before, most = pids(address), orders.loads(), 0
    ends = time.monotonic() + 10
    with Load(address, VERSIONS, clients=12) as load:
        while time.monotonic() < ends:
            most = max(most, *(orders.alive(pid) for pid in replicas))
            time.sleep(0.01)
    assert load.failed == []
    assert [each for each in load.sent if not each.version == each.served == each.tag] == []
    assert {each.tag for each in load.sent} == set(VERSIONS)
    assert {each.pid for each in load.sent} == replicas
    # Two that are ready and two that load or drain, in each replica.
    assert most <= 4
    assert 4 < orders.loads() - before < len(load.sent)


def assert_a_kill_costs_only_what_was_in_the_replica(address):
    clients = 6
    victim, survivor = pids(address)
    with Load(address, clients=clients, prompt="sleep 0.02") as load:
        eventually(lambda: {victim, survivor} <= {each.pid for each in load.sent if each.ok})
        process = psutil.Process(victim)
        process.kill()
        process.wait(30)
        gone = time.monotonic()
        eventually(lambda: {each.pid for each in load.sent if each.ok} - {victim, survivor})
    assert [each for each in load.failed if each.began > gone] == []
    assert len(load.failed) <= clients
    answers = sorted(each.ended for each in load.sent if each.ok and each.pid == survivor)
    assert max(later - earlier for earlier, later in itertools.pairwise(answers)) < 5
    assert survivor in pids(address)


def test_a_killed_replica_takes_only_its_own_requests_with_it(address):
    """May fail: the requests that were in the killed replica, which the clients had sent before."""
    assert_a_kill_costs_only_what_was_in_the_replica(address)


@pytest.mark.slow
def test_a_killed_replica_behind_haproxy_takes_only_its_own_requests_with_it(shelf, orders, tmp_path):
    """May fail: the same, where ``registry-serve run`` serves."""
    with running(tmp_path, "crew", "--tracking-uri", shelf.uri, "--replicas", "2") as process:
        process.until("Ctrl-C ends it")
        assert_a_kill_costs_only_what_was_in_the_replica(process.address)


def test_a_new_deployment_takes_over_under_load(address, crew):
    """Nothing may fail: what is in the old replicas is answered there."""
    before = pids(address)
    with Load(address, ("1", "2"), clients=4) as load, ThreadPoolExecutor(4) as pool:
        eventually(lambda: len(load.sent) > 20)
        long = [pool.submit(ask, address, "", "sleep 1") for _ in range(4)]
        start("crew", crew(max_pending_requests=500), num_replicas=2)
        eventually(lambda: not before & {each.pid for each in load.sent[-20:] if each.ok})
    assert load.failed == []
    assert all(each.result().ok for each in long)
    assert not before & pids(address)


def test_fewer_replicas_under_load(address, crew):
    """Nothing may fail: what is in the replica that goes is answered there."""
    with Load(address, ("1", "2"), clients=4, prompt="sleep 0.02") as load:
        eventually(lambda: len({each.pid for each in load.sent}) == 2)
        start("crew", crew(), num_replicas=1)
        eventually(lambda: len(serve.status().applications["crew"].deployments["crew"].replica_states) == 1)
        done = time.monotonic()
        eventually(lambda: len(load.since(done)) > 20)
    assert load.failed == []
