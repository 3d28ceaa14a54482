"""The node's copies of model artifacts have a budget and a disk: what goes and what stays when they are full."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry_serve.downloaders import ArtifactCache, is_disk_full
from registry_serve.errors import ConfigurationError, DiskFull, RegistryUnavailable
from tests.artifact_workers import HALF, Worker, fill
from tests.mlflow_server import MlflowServer, shared_server

MODEL = 2 * HALF
MIB = 2**20
VARIABLE = "REGISTRY_SERVE_ARTIFACTS_MAX_BYTES"


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def start(root):
    """Start a process with the same cache."""
    with ExitStack() as stack:

        def make(max_bytes=None, **options) -> Worker:
            worker = Worker(options.pop("root", root), max_bytes, **options)
            stack.callback(worker.kill)
            return worker

        yield make


def fetch(cache: ArtifactCache, name: str, size_bytes: int = 0):
    return cache.fetch(name, lambda directory: fill(name, directory), size_bytes)


def models(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def assert_nothing_half_done(root: Path) -> None:
    assert list((root / ".partial").iterdir()) == []
    assert list((root / ".trash").iterdir()) == []
    assert sorted(path.name for path in (root / ".manifests").iterdir()) == [f"{name}.json" for name in models(root)]


# --- the budget ----------------------------------------------------------------------------------------------------


def test_the_least_recently_used_models_go_when_the_budget_is_spent(root):
    cache = ArtifactCache(root, 3 * MODEL)
    for name in ("m-1", "m-2", "m-3", "m-1", "m-4", "m-5"):
        fetch(cache, name).release()
    assert models(root) == ["m-1", "m-4", "m-5"]
    assert cache.usage().used_bytes == cache.usage().max_bytes == 3 * MODEL
    assert cache.usage().models == 3
    assert_nothing_half_done(root)


def test_a_model_counts_as_used_until_it_is_released(root):
    cache = ArtifactCache(root, 2 * MODEL)
    first = fetch(cache, "m-1")
    fetch(cache, "m-2").release()
    first.release()
    fetch(cache, "m-3").release()
    assert models(root) == ["m-1", "m-3"]


def test_room_is_made_before_the_download_where_the_size_is_known(root):
    cache = ArtifactCache(root, 2 * MODEL)
    for name in ("m-1", "m-2"):
        fetch(cache, name).release()
    seen = []

    def download(directory: Path) -> None:
        seen.append(models(root))
        fill("m-3", directory)

    cache.fetch("m-3", download, MODEL)
    assert seen == [["m-2"]]


def test_models_in_use_stay_beyond_the_budget_and_go_when_they_are_released(root, caplog):
    cache = ArtifactCache(root, 0)
    files = [fetch(cache, name) for name in ("m-1", "m-2", "m-2")]
    assert models(root) == ["m-1", "m-2"]
    assert VARIABLE in caplog.text
    files[1].release()
    files[1].release()
    assert models(root) == ["m-1", "m-2"]  # two have m-2, and one of them released it twice
    files[2].release()
    assert models(root) == ["m-1"]
    files[0].release()
    assert models(root) == []
    assert_nothing_half_done(root)


def test_what_another_process_uses_stays_until_it_releases_it_or_is_killed(root, start):
    one, other = start(), start()
    one.fetch("m-1")
    other.fetch("m-1")
    other.fetch("m-2")
    cache = ArtifactCache(root, MODEL)
    fetch(cache, "m-3").release()
    assert models(root) == ["m-1", "m-2"]

    one.release("m-1")
    fetch(cache, "m-3").release()
    assert models(root) == ["m-1", "m-2"]
    assert other.is_whole("m-1")

    other.kill()
    fetch(cache, "m-3").release()
    assert models(root) == ["m-3"]


def test_nothing_vanishes_under_many_processes_that_share_a_budget_too_small_for_them(root, start):
    names = [f"m-{n}" for n in range(6)]
    budget = 3 * MODEL  # four processes with two models each, of six
    workers = [start(budget) for _ in range(4)]
    for seed, worker in enumerate(workers):
        worker.tell("fetch_at_random", seed, names, 25)
    assert [worker.answer() for worker in workers] == [0, 0, 0, 0]

    downloads = [name for worker in workers for name in worker.count()]
    assert set(downloads) == set(names)
    assert len(names) < len(downloads) < 4 * 25 * 2
    assert ArtifactCache(root, budget).usage().used_bytes <= budget
    assert_nothing_half_done(root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000", 1000), ("20GiB", 20 * 2**30), ("500MB", 500 * 10**6), ("1.5 gib", 3 * 2**29), ("2k", 2000), ("0", 0)],
)
def test_the_budget_is_read_from_the_environment(root, monkeypatch, text, expected):
    monkeypatch.setenv(VARIABLE, text)
    assert ArtifactCache(root).usage().max_bytes == expected
    assert ArtifactCache(root, 7).usage().max_bytes == 7


@pytest.mark.parametrize("text", ["lots", "-5", "20GiBs", "5.5.5GB", "20,5GB", "20 000 MB", "1e9", "nan", "GB"])
def test_a_budget_that_is_no_number_of_bytes_is_a_mistake_of_the_configuration(root, monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigurationError, match=f"{VARIABLE} must be a number of bytes such as 20GiB"):
        ArtifactCache(root)


@pytest.mark.parametrize("text", [None, "", " "])
def test_the_budget_is_half_of_what_could_be_free_unless_somebody_sets_it(root, monkeypatch, text):
    monkeypatch.delenv(VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(VARIABLE, text)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 * MODEL))
    cache = ArtifactCache(root)
    assert cache.usage().max_bytes == 5 * MODEL // 2
    fetch(cache, "m-1")
    assert cache.usage().max_bytes == 3 * MODEL


# --- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["small disk", "quota"])
def small(request, tmp_path):
    """A place for four mebibytes: a file system of that size where it may be mounted, else a quota on files.

    Returns:
        The root, and the worker's quota.
    """
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={4 * MIB}", "tmpfs", str(place)]
    if request.param == "quota" or subprocess.run(command, capture_output=True).returncode != 0:
        yield place / "artifacts", 4 * MIB
        return
    yield place / "artifacts", None
    subprocess.run(["umount", "--lazy", str(place)], check=True)


LARGE = int(1.25 * MIB)  # half of a model that fits once


def test_a_full_disk_costs_the_unused_models_and_not_the_download(small, start):
    root, quota = small
    worker = start(2**40, root=root, quota=quota, half=LARGE)
    worker.fetch("m-1")
    worker.release("m-1")
    worker.fetch("m-2")
    assert worker.is_whole("m-2")
    assert worker.count() == ["m-1", "m-2", "m-2"]
    assert models(root) == ["m-2"]
    assert_nothing_half_done(root)


def test_a_full_disk_costs_nothing_that_is_in_use_and_leaves_nothing_half_done(small, start):
    root, quota = small
    user = start(2**40, root=root, quota=quota, half=LARGE)
    user.fetch("m-1")
    other = start(2**40, root=root, quota=quota, half=LARGE)
    with pytest.raises(OSError, match=r"No space left|File too large") as full:
        other.fetch("m-2")
    assert is_disk_full(full.value)
    assert other.count() == ["m-2", "m-2"]
    assert user.is_whole("m-1")
    assert models(root) == ["m-1"]
    assert_nothing_half_done(root)

    # and nothing is left behind that keeps it from working once there is room
    user.release("m-1")
    other.fetch("m-2")
    assert other.is_whole("m-2")


def test_what_a_full_disk_says_is_told_from_other_trouble():
    assert is_disk_full(OSError(errno.EDQUOT, "quota"))
    assert is_disk_full(RuntimeError("weights.bin: [Errno 28] No space left on device"))
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = OSError(errno.EFBIG, "large")
    assert is_disk_full(wrapped)
    assert not is_disk_full(PermissionError(errno.EACCES, "no"))
    assert not is_disk_full(RuntimeError("the store's own"))


# --- with a real registry ------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> MlflowServer:
    return shared_server()


def register(server: MlflowServer, name: str, size_bytes: int, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        file.truncate(size_bytes)
    server.register(name, artifacts={"weights": str(weights)})


@pytest.fixture
def temporary(tmp_path) -> Path:
    """Where MLflow and everybody else in a worker creates temporary files."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


@pytest.mark.timeout(120)
def test_a_version_too_large_for_the_disk_is_refused_with_what_to_do(server, small, start, tmp_path):
    root, quota = small
    register(server, "too-large", 8 * MIB, tmp_path)
    register(server, "fits", 2 * MIB, tmp_path)
    worker = start(2**40, root=root, quota=quota)
    with pytest.raises(DiskFull, match="REGISTRY_SERVE_ARTIFACTS") as full:
        worker.download_version(server.uri, "too-large")
    assert (full.value.status, full.value.code, full.value.retry_after) == (507, "disk_full", 30)
    assert str(root) not in str(full.value)
    assert models(root) == []
    assert_nothing_half_done(root)
    assert (worker.download_version(server.uri, "fits") / "MLmodel").is_file()


@pytest.mark.timeout(120)
def test_downloads_leave_no_temporary_files_whether_they_work_fail_or_are_killed(
    server, root, start, tmp_path, temporary
):
    register(server, "small", 1000, tmp_path)
    register(server, "endless", 1000, tmp_path)
    register(server, "unreadable", 1000, tmp_path)
    weights = server.files_of("unreadable", "1") / "artifacts" / "weights"
    weights.unlink()
    weights.symlink_to("/proc/self/mem")  # listed as a file, but reading it is an error of the disk
    hole = server.files_of("endless", "1") / "artifacts" / "weights"
    os.truncate(hole, 2**40)  # takes no room there, and longer to download than this test runs

    worker = start(temporary=temporary)
    directory = worker.download_version(server.uri, "small")
    worker.load(directory)
    assert sorted(temporary.iterdir()) == []

    with pytest.raises(RegistryUnavailable):
        worker.download_version(server.uri, "unreadable")
    assert sorted(temporary.iterdir()) == []

    worker.tell("download_version", server.uri, "endless")
    while not [path for path in (root / ".partial").rglob("*") if path.is_file()]:
        assert not worker.pipe.poll(0.01)
    worker.kill()
    assert sorted(temporary.iterdir()) == []
    ArtifactCache(root).fetch(directory.name, pytest.fail)
    assert models(root) == [directory.name]
    assert_nothing_half_done(root)
