"""The node's copies of model artifacts: complete or absent, whoever asks and whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry_serve.downloaders import ArtifactCache, local_directory


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def cache(root) -> ArtifactCache:
    return ArtifactCache(root)


def filling(directory: Path) -> None:
    (directory / "MLmodel").write_text("flavors: {}")
    (directory / "data").mkdir()
    (directory / "data" / "weights").write_bytes(b"w" * 1000)


def contents(root: Path) -> list[str]:
    """Everything but the lock files."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".lock" not in str(path))


COMPLETE = [".partial", "m-1", "m-1/MLmodel", "m-1/data", "m-1/data/weights"]


def test_a_model_is_downloaded_once(cache, root):
    directory = cache.fetch("m-1", filling)
    assert directory == root / "m-1" == cache.directory("m-1")
    assert contents(root) == COMPLETE
    assert cache.fetch("m-1", pytest.fail) == directory
    assert ArtifactCache(root).fetch("m-1", pytest.fail) == directory


def test_asking_where_a_model_would_be_creates_nothing(cache, root):
    assert cache.directory("m-1") == root / "m-1"
    assert not root.exists()


def test_a_failed_download_leaves_nothing_behind_and_is_tried_again(cache, root):
    def failing(directory: Path) -> None:
        filling(directory)
        raise ConnectionError("broke off")

    with pytest.raises(ConnectionError, match="broke off"):
        cache.fetch("m-1", failing)
    assert contents(root) == [".partial"]
    assert cache.fetch("m-1", filling).is_dir()


def test_threads_that_ask_for_one_model_share_one_download(root):
    downloads = []

    def slowly(directory: Path) -> None:
        downloads.append(directory)
        time.sleep(0.1)
        filling(directory)

    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(lambda _: ArtifactCache(root).fetch("m-1", slowly), range(16)))
    assert got == {root / "m-1"}
    assert len(downloads) == 1
    assert contents(root) == COMPLETE


def test_different_models_download_at_the_same_time(cache):
    both_are_here = threading.Barrier(2, timeout=20)

    def meeting(directory: Path) -> None:
        both_are_here.wait()

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda name: cache.fetch(name, meeting), ["m-1", "m-2"]))) == 2


PROCESS = """
import sys, time
from pathlib import Path
from registry_serve.downloaders import ArtifactCache

def slowly(directory):
    (directory / "MLmodel").write_text("flavors: {}")
    print("downloading", flush=True)
    time.sleep(float(sys.argv[2]))

ArtifactCache(Path(sys.argv[1])).fetch("m-1", slowly)
print("done", flush=True)
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_ask_for_one_model_share_one_download(root):
    processes = [start(root, 0.3) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(said, key=len) == [["done"], ["done"], ["downloading", "done"]]
    assert contents(root) == [".partial", "m-1", "m-1/MLmodel"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_loads_is_not(root):
    dead = start(root, 60)
    assert dead.stdout.readline() == "downloading\n"

    # alive: another model's first download looks at it and leaves it alone
    ArtifactCache(root).fetch("m-2", filling)
    assert (root / ".partial" / "m-1" / "MLmodel").exists()

    dead.kill()
    dead.wait(30)
    dead.stdout.close()
    ArtifactCache(root).fetch("m-3", filling)
    assert contents(root / ".partial") == []
    assert ArtifactCache(root).fetch("m-1", filling).is_dir()


def test_a_process_that_dies_in_the_middle_is_taken_over_from(root):
    dead = start(root, 60)
    assert dead.stdout.readline() == "downloading\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ArtifactCache(root).fetch, "m-1", filling)
        time.sleep(0.2)
        assert not waiting.done()
        dead.kill()
        dead.wait(30)
        dead.stdout.close()
        assert waiting.result(timeout=20) == root / "m-1"
    assert contents(root) == COMPLETE


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "", ".", "..", ".partial", ".locks", "a/b", "é", "x" * 300]
)
def test_a_name_from_a_strangers_file_stays_inside_the_root(cache, root, name):
    directory = cache.fetch(name, filling)
    assert directory.parent == root
    assert not directory.name.startswith(".")
    assert directory == cache.directory(name)


def test_only_the_owner_may_read_or_write_the_copies(cache, root):
    cache.fetch("m-1", filling)
    assert root.stat().st_mode & 0o777 == 0o700


def test_the_root_is_the_users_cache_directory_unless_the_environment_names_another(monkeypatch, tmp_path):
    monkeypatch.delenv("REGISTRY_SERVE_ARTIFACTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert ArtifactCache().root == tmp_path / "registry_serve" / "artifacts"
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", "models")
    assert ArtifactCache().root == Path(os.getcwd(), "models")
    assert ArtifactCache(tmp_path / "other").root == tmp_path / "other"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/models/a", "/models/a"),
        ("file:///models/a%20b", "/models/a b"),
        ("file:/models/a", "/models/a"),
        ("file://localhost/models", "/models"),
        ("file://elsewhere/models", None),
        ("s3://bucket/models", None),
        ("mlflow-artifacts:/1/models", None),
        ("http://host/models", None),
        ("runs:/1/model", None),
    ],
)
def test_only_paths_of_this_machine_are_local(uri, path):
    assert local_directory(uri) == (None if path is None else Path(path))
