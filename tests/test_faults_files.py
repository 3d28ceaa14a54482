"""A registry that goes away, damaged files, a full disk. Each test says what may fail; nothing else does."""

import os
import resource
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from registry_serve import CachePolicy, Limits, deployment_from_model_name
from registry_serve.policies import RegistryAddress
from registry_serve.registry import impatient_http
from tests.load import Load, Orders, ask, eventually, replica, served
from tests.mlflow_server import shared_server
from tests.toys import Shelf

pytestmark = pytest.mark.cluster

MODEL = "far away"


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """Versions on a server: 1 to 5, of which 2 is ``@second`` and 5 the latest and largest, with 16 MB."""
    folder = tmp_path_factory.mktemp("orders")
    orders = Orders(folder / "far")
    shelf = Shelf(folder, shared_server().uri, experiment=f"faults {folder.name}")
    weights = folder / "weights"
    for tag in ("1", "2", "3", "4", "5"):
        weights.write_bytes(os.urandom(16_000_000 if tag == "5" else 1000))
        shelf.log(MODEL, orders.model(tag), artifacts={"weights": str(weights)})
    shelf.alias(MODEL, "second", "2")
    return orders


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Where the node keeps what it downloads."""
    return tmp_path_factory.mktemp("node") / "artifacts"


@pytest.fixture(scope="module")
def far(cluster, orders, disk):
    """They are served by one replica, which downloads them."""
    address = RegistryAddress(shared_server().uri)
    with impatient_http(address):
        deployment = deployment_from_model_name(
            MODEL,
            tracking_uri=address.tracking_uri,
            cache=CachePolicy(max_models=3, retry_failed_after_s=1),
            limits=Limits(request_timeout_s=30),
        )
    environment = {"env_vars": {"REGISTRY_SERVE_ARTIFACTS": str(disk)}}
    with served(cluster, "far", deployment, ray_actor_options={"runtime_env": environment}) as address:
        yield address


@contextmanager
def server_away():
    shared_server().stop()
    try:
        yield
    finally:
        shared_server().start()


def stored(version, name):
    """Return one of a version's files in the artifact store."""
    return shared_server().files_of(MODEL, version) / name


def copied(disk, file):
    """Return the node's copy of a file of the store."""
    same = [path for path in disk.rglob(file.name) if path.read_bytes() == file.read_bytes()]
    assert len(same) == 1
    return same[0]


def half_done(disk):
    return [path for path in (disk / ".partial").rglob("*") if path.is_file()]


def test_versions_that_are_known_answer_while_the_registry_is_away(far):
    """May fail: requests for versions that nobody asked for before, within seconds and with Retry-After."""
    known = ("", "1", "2", "second", "latest")
    assert [ask(far, version).tag for version in known] == ["1", "1", "2", "2", "5"]
    with server_away():
        with Load(far, known, clients=3) as load:
            for unknown in ("3", "99", "@nobody"):
                failed = ask(far, unknown)
                assert (failed.status, failed.code) == (503, "registry_unavailable")
                assert failed.retry_after
                assert failed.took_s < 15
            # What the registry said a moment ago is believed without asking: go on until it has been asked again.
            asked_again = time.monotonic() + RegistryAddress(shared_server().uri).fresh_for_s + 1
            eventually(lambda: {each.version for each in load.since(asked_again)} == set(known))
        assert load.failed == []
        pid = ask(far).pid
        os.kill(pid, signal.SIGKILL)
        # The default's files are on the node, so a new replica needs no registry.
        assert eventually(lambda: [each for each in [ask(far)] if each.ok])[0].pid != pid
    assert eventually(lambda: [each for each in [ask(far, "3")] if each.ok])[0].tag == "3"


def test_a_registry_that_goes_away_while_a_version_is_downloaded(far, disk):
    """May fail: the requests that wait for this version, within seconds and with Retry-After."""
    weights = stored("4", "artifacts/weights")
    kept = weights.read_bytes()
    assert [ask(far, version).ok for version in ("1", "2")] == [True, True]
    os.truncate(weights, 2**40)  # a hole on the disk, and a download that never ends
    with Load(far, ("1", "2"), clients=2) as load, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, far, "4") for _ in range(3)]
        eventually(lambda: half_done(disk))
        with server_away():
            failed = [each.result() for each in waiting]
            weights.write_bytes(kept)
    assert {(each.status, each.code) for each in failed} == {(503, "registry_unavailable")}
    assert all(each.retry_after for each in failed)
    assert load.failed == []
    assert half_done(disk) == []
    assert eventually(lambda: [each for each in [ask(far, "4")] if each.ok])[0].tag == "4"


def unloaded(far, version):
    """Let other versions push one out of memory."""
    others = [each for each in ("2", "3", "4", "5") if each != version]
    eventually(lambda: all(ask(far, each).ok for each in others) and replica(far)["states"][version] == "absent")


@pytest.mark.parametrize(
    ("name", "damage"), [("python_model.pkl", "shorter"), ("python_model.pkl", "altered"), ("MLmodel", "altered")]
)
def test_a_damaged_copy_on_the_node_is_downloaded_again(far, disk, name, damage):
    """Nothing may fail."""
    assert ask(far, "4").ok
    unloaded(far, "4")
    sound = stored("4", name)
    copy = copied(disk, sound)
    content = copy.read_bytes()
    copy.write_bytes(content[:100] if damage == "shorter" else bytes(len(content)))
    with Load(far, ("1", "5"), clients=2) as load:
        answered = ask(far, "4")
    assert (answered.status, answered.text.split()[0]) == (200, "4")
    assert load.failed == []
    assert copied(disk, sound).read_bytes() == content


def test_a_version_whose_files_are_damaged_in_the_store_works_once_they_are_mended(far, disk):
    """May fail: requests for this version, until somebody has mended it and a pause is over."""
    assert ask(far, "4").ok
    unloaded(far, "4")
    file = stored("4", "python_model.pkl")
    content = file.read_bytes()
    shutil.rmtree(copied(disk, file).parent)
    file.write_bytes(content[:100])
    with Load(far, ("1", "2"), clients=2) as load:
        failed = ask(far, "4")
        assert (failed.status, failed.code) == (500, "load_failed")
        file.write_bytes(content)
        assert eventually(lambda: [each for each in [ask(far, "4")] if each.ok])[0].tag == "4"
    assert load.failed == []


@contextmanager
def small_disk(folder, megabytes, pid):
    """Give a folder a disk of its own that is soon full; gives what makes it larger.

    Who may not mount one gets a process that may write no larger files, which is an error of the same kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "registry_serve_test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield lambda: subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (megabytes * 10**6, most))
        yield lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


def test_a_version_that_finds_the_disk_full_fails_alone_and_works_once_there_is_room(far, disk):
    """May fail: requests for versions that must be downloaded and do not fit."""
    unloaded(far, "5")
    pid = ask(far).pid
    with small_disk(disk, 8, pid) as make_room, Load(far, ("1", "4"), clients=2) as load:
        failed = ask(far, "5")
        assert (failed.status, failed.code, failed.retry_after) == (507, "disk_full", "30")
        assert str(disk) not in failed.text
        assert half_done(disk) == []
        make_room()
        answered = eventually(lambda: [each for each in [ask(far, "5")] if each.ok])[0]
        assert (answered.status, answered.text.split()[:2]) == (200, ["5", str(pid)])
    assert load.failed == []
