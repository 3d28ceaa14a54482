"""Models that hang, die or fail, and clients that leave. Each test says what may fail; nothing else does."""

import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pandas as pd
import psutil
import pytest
import requests
from mlflow.models import infer_signature

from registry_serve import BatchPolicy, CachePolicy, Limits, deployment_from_model_name
from tests.load import Load, Orders, ask, eventually, replica, served

pytestmark = pytest.mark.cluster

TEXT = infer_signature(pd.DataFrame({"prompt": ["a"]}), pd.DataFrame({"text": ["a"]}))
OTHER = infer_signature(pd.DataFrame({"other": ["a"]}), pd.DataFrame({"text": ["a"]}))


@pytest.fixture(scope="module")
def orders(shelf, tmp_path_factory):
    """``ward``: all versions answer, but 3 has another signature and 5 is forbidden."""
    orders = Orders(tmp_path_factory.mktemp("orders") / "ward")
    for tag in ("1", "2", "3", "4", "5", "6", "7"):
        shelf.log("ward", orders.model(tag), signature=OTHER if tag == "3" else TEXT)
    return orders


@pytest.fixture(scope="module")
def ward(cluster, shelf, orders):
    """It is served by one replica."""
    deployment = deployment_from_model_name(
        "ward", tracking_uri=shelf.uri, versions="1,2,3,4,6,7", cache=CachePolicy(retry_failed_after_s=1)
    )
    with served(cluster, "ward", deployment) as address:
        yield address


@pytest.fixture(scope="module")
def strict(cluster, shelf, orders):
    """It is served by one replica that loses patience soon: with a call after 3 s, with a load after 30 s.

    A request may take 2 s, body and all. Less would also be a limit on how long Serve takes to bring a body to a
    replica that has just started, which on a busy machine can be more than a second.
    """
    deployment = deployment_from_model_name(
        "ward",
        tracking_uri=shelf.uri,
        batching=BatchPolicy(max_waiting=4),
        limits=Limits(request_timeout_s=2, stuck_after_s=3),
    )
    with served(cluster, "strict", deployment, health_check_timeout_s=3) as address:
        yield address


def test_a_thousand_requests_for_what_cannot_answer_disturb_nobody(ward, orders):
    """May fail: these requests, each with its own error."""
    expected = {"99": 404, "@nobody": 404, "3": 409, "5": 403, "4": 500}
    with orders.given("4", "raise"):
        assert [ask(ward, version).ok for version in ("1", "2")] == [True, True]
        with Load(ward, list(expected), clients=8, times=25) as warming_up:
            warming_up.wait()
        process = psutil.Process(ask(ward).pid)
        before, memory = replica(ward), process.memory_info().rss
        began = time.monotonic()
        with Load(ward, ("1", "2"), clients=2) as warm, Load(ward, list(expected), clients=8, times=125) as wrong:
            wrong.wait()
        took_s = time.monotonic() - began
        after = replica(ward)
    assert len(wrong.sent) == 1000
    assert {each.version: each.status for each in wrong.sent} == expected
    assert [each for each in wrong.sent if each.status != expected[each.version]] == []
    assert warm.failed == []
    assert {each.version for each in warm.sent} == {"1", "2"}
    assert after["evictions"] == before["evictions"]
    # A pause of one second, then of two, four, eight ...
    assert after["loads"] - before["loads"] <= 1 + took_s / 2
    assert process.memory_info().rss - memory < 30 * 2**20


def test_a_load_or_a_call_that_runs_out_of_memory_is_told_and_forgotten(ward, orders):
    """May fail: the requests for that version, and only while it does so."""
    pid = ask(ward).pid
    with orders.given("6", "memory"), Load(ward, ("1", "2"), clients=2) as load:
        failed = eventually(lambda: [each for each in [ask(ward, "6")] if "memory" in each.text])[0]
        assert (failed.status, failed.code) == (500, "load_failed")
        refused = ask(ward, "2", "memory")
        assert (refused.status, refused.code) == (500, "prediction_failed")
        assert ask(ward, "2").ok
    assert load.failed == []
    assert eventually(lambda: [each for each in [ask(ward, "6")] if each.ok])[0].pid == pid


def test_a_load_that_ends_the_process_does_so_twice_and_is_then_isolated(ward, orders):
    """May fail: the requests that were in the replica, the first two times that somebody asks for this version."""
    clients, deaths = 3, 2
    with orders.given("7", "exit"), Load(ward, clients=clients) as load:
        for _ in range(deaths):
            pid = ask(ward).pid
            assert not ask(ward, "7").ok
            assert ask(ward).pid != pid
        pid = ask(ward).pid
        refused = ask(ward, "7")
        assert (refused.status, refused.code) == (500, "load_failed")
        assert ask(ward).pid == pid
    assert len(load.failed) <= clients * deaths
    assert orders.loads("7") >= deaths
    assert eventually(lambda: [each for each in [ask(ward, "7")] if each.ok])[0].pid != pid


class Client:
    """A client that leaves before it has its answer.

    Args:
        address: of the model.
        version: what it asks for.
        prompt: its row.
        said: how much of the body it sends.
    """

    def __init__(self, address, version="", prompt="a", said=1.0):
        parts = urlsplit(address)
        body = f'{{"prompt": "{prompt}"}}'.encode()
        lines = (
            f"POST {parts.path}/serve HTTP/1.1",
            f"Host: {parts.netloc}",
            f"Content-Length: {len(body)}",
            f"serve-multiplexed-model-id: {version}",
        )
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.sendall("\r\n".join((*lines, "", "")).encode() + body[: int(said * len(body))])

    def status(self):
        """Wait for the answer; gives its status."""
        self.socket.settimeout(10)
        with self.socket, self.socket.makefile("rb") as answer:
            return int(answer.readline().split()[1])

    def leave(self):
        self.socket.close()


def test_three_hundred_clients_that_leave_leave_nothing_behind(ward, orders):
    """Nothing may fail for those who stay."""
    chance = random.Random(5)

    def crowd(count):
        kinds = [{"said": 0}, {"said": 0.5}, {"version": "2", "prompt": "sleep 0.02"}, {"version": "4"}]
        clients = [Client(ward, **kinds[each % len(kinds)]) for each in range(count)]
        chance.shuffle(clients)
        for client in clients:
            time.sleep(chance.uniform(0, 2.0 / count))
            client.leave()

    def calm():
        return replica(ward)["pending_requests"] == 0

    crowd(40)
    eventually(calm)
    assert [ask(ward, version).ok for version in ("4", "2")] == [True, True]
    process = psutil.Process(ask(ward).pid)
    loads, threads, files = orders.loads("4"), process.num_threads(), process.num_fds()
    with Load(ward, clients=2) as load:
        with orders.given("4", "hang"):
            crowd(300)
            eventually(calm, 20)  # whoever still asked for version 2 once 4 is there would push it out
        assert ask(ward, "4").took_s < 5
    assert load.failed == []
    assert orders.loads("4") == loads + 1
    # Had anybody kept a lease on version 2, it could not close.
    eventually(lambda: replica(ward)["states"]["2"] == "absent", 20)
    eventually(lambda: orders.alive(process.pid) == 2, 20)
    eventually(lambda: process.num_threads() <= threads + 4 and process.num_fds() <= files + 10, 20)
    assert ask(ward, "2").ok


def test_clients_that_never_send_all_of_their_body_are_told_so_and_keep_no_place(strict):
    """May fail: their own requests, with 408."""
    with Load(strict, clients=2) as load:
        slow = [Client(strict, said=0.5) for _ in range(20)]
        assert {client.status() for client in slow} == {408}
        eventually(lambda: replica(strict)["pending_requests"] <= 2)
    assert load.failed == []


def healthy(address):
    return requests.get(f"{address}/health/ready", timeout=10).status_code == 200


def test_a_model_that_hangs_keeps_only_its_own_callers_waiting_until_its_replica_is_replaced(strict, orders):
    """May fail: requests for the version that hangs, with 504, and 429 once its queue is full."""
    assert ask(strict, "2").ok
    pid = ask(strict).pid
    with orders.given("hang"), ThreadPoolExecutor(13) as pool, Load(strict, clients=2) as load:
        hanging = list(pool.map(lambda _: ask(strict, "2", "hang"), range(13)))
        counted = Counter((each.status, each.code) for each in hanging)
        assert set(counted) == {(504, "prediction_timeout"), (429, "version_overloaded")}
        # One that computes, and four that wait; a request that comes when their time is over takes a place again.
        assert counted[504, "prediction_timeout"] >= 4
        assert healthy(strict)
        eventually(lambda: {each.pid for each in load.sent if each.ok} - {pid})
        assert ask(strict, "2").ok
    assert load.failed == []


@pytest.mark.slow
def test_a_load_that_hangs_keeps_only_its_own_callers_waiting_until_its_replica_is_replaced(strict, orders):
    """May fail: requests for the version that loads, with 503."""
    pid = ask(strict).pid
    with orders.given("4", "hang"), Load(strict, clients=2) as load:
        for _ in range(2):
            waiting = ask(strict, "4")
            assert (waiting.status, waiting.code, waiting.took_s < 10) == (503, "version_loading", True)
            assert waiting.retry_after
            assert healthy(strict)
        eventually(lambda: {each.pid for each in load.sent if each.ok} - {pid})
    assert load.failed == []
    assert ask(strict, "4").ok


@pytest.mark.slow
def test_a_model_that_keeps_pythons_lock_takes_its_replica_with_it_until_that_is_replaced(strict):
    """May fail: everything in that replica, which cannot even say that it is stuck."""
    pid = ask(strict).pid
    with ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(ask, strict, "2", "freeze")
        eventually(lambda: [each for each in [ask(strict, timeout=5)] if each.ok and each.pid != pid], 90)
        assert not frozen.result().ok
    eventually(lambda: not psutil.pid_exists(pid), 40)
    assert ask(strict, "2").ok
