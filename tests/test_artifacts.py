"""The node's copies of model artifacts: complete or absent, whoever asks and whoever dies."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry_serve.downloaders import ArtifactCache, local_directory
from tests.artifact_workers import HALF, Worker, fill, is_whole


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def cache(root) -> ArtifactCache:
    return ArtifactCache(root)


@pytest.fixture
def start(root):
    """Start a process with the same cache."""
    with ExitStack() as stack:

        def make(max_bytes=None, **options) -> Worker:
            worker = Worker(root, max_bytes, **options)
            stack.callback(worker.kill)
            return worker

        yield make


def filling(directory: Path) -> None:
    fill("m-1", directory)


def contents(root: Path) -> list[str]:
    """Everything but the lock files."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".lock" not in str(path))


NOTHING = [".manifests", ".partial", ".trash"]
COMPLETE = [
    *(".manifests", ".manifests/m-1.json", ".partial", ".trash"),
    *("m-1", "m-1/MLmodel", "m-1/data", "m-1/data/weights"),
]


def test_a_model_is_downloaded_once(cache, root):
    files = cache.fetch("m-1", filling)
    assert files.directory == root / "m-1"
    assert files.size_bytes == 2 * HALF
    assert contents(root) == COMPLETE
    assert cache.fetch("m-1", pytest.fail).directory == files.directory
    assert ArtifactCache(root).fetch("m-1", pytest.fail).directory == files.directory


def test_a_cache_that_nobody_asked_creates_nothing(cache, root):
    assert (cache.usage().models, cache.usage().used_bytes) == (0, 0)
    assert not root.exists()


def test_a_failed_download_leaves_nothing_behind_and_is_tried_again(cache, root):
    def failing(directory: Path) -> None:
        filling(directory)
        raise ConnectionError("broke off")

    with pytest.raises(ConnectionError, match="broke off"):
        cache.fetch("m-1", failing)
    assert contents(root) == NOTHING
    assert cache.fetch("m-1", filling).directory.is_dir()


def test_threads_that_ask_for_one_model_share_one_download(root):
    downloads = []

    def slowly(directory: Path) -> None:
        downloads.append(directory)
        time.sleep(0.1)
        filling(directory)

    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(lambda _: ArtifactCache(root).fetch("m-1", slowly).directory, range(16)))
    assert got == {root / "m-1"}
    assert len(downloads) == 1
    assert contents(root) == COMPLETE


def test_different_models_download_at_the_same_time(cache):
    both_are_here = threading.Barrier(2, timeout=20)

    def meeting(directory: Path) -> None:
        both_are_here.wait()

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda name: cache.fetch(name, meeting), ["m-1", "m-2"]))) == 2


def test_processes_that_ask_for_one_model_share_one_download(root, start):
    workers = [start() for _ in range(4)]
    for worker in workers:
        worker.tell("fetch", "m-1")
    assert {worker.answer() for worker in workers} == {root / "m-1"}
    assert [name for worker in workers for name in worker.count()] == ["m-1"]
    assert contents(root) == COMPLETE


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_downloads_is_not(root, start):
    dead = start()
    dead.tell("fetch_and_hang", "m-1")
    assert dead.answer() == "downloading"

    # alive: another model's first download looks at it and leaves it alone
    ArtifactCache(root).fetch("m-2", filling)
    assert (root / ".partial" / "m-1" / "MLmodel").exists()

    dead.kill()
    # the next start needs no download to notice
    ArtifactCache(root).fetch("m-2", pytest.fail)
    assert contents(root / ".partial") == []
    assert ArtifactCache(root).fetch("m-1", filling).directory.is_dir()


def test_a_process_that_dies_in_the_middle_is_taken_over_from(root, start):
    dead, next_one = start(), start()
    dead.tell("fetch_and_hang", "m-1")
    assert dead.answer() == "downloading"
    next_one.tell("fetch", "m-1")
    assert not next_one.pipe.poll(0.2)
    dead.kill()
    assert next_one.answer() == root / "m-1"
    assert next_one.is_whole("m-1")
    assert contents(root) == COMPLETE


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "", ".", "..", ".partial", ".locks", "a/b", "é", "x" * 300]
)
def test_a_name_from_a_strangers_file_stays_inside_the_root(cache, root, name):
    directory = cache.fetch(name, filling).directory
    assert directory.parent == root
    assert not directory.name.startswith(".")
    assert directory == cache.fetch(name, pytest.fail).directory


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


# --- damage --------------------------------------------------------------------------------------------------------

WEIGHTS = Path("data", "weights")


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def rot(path: Path) -> None:
    """Change one byte; the size stays."""
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)


def folder_gone(path: Path) -> None:
    shutil.rmtree(path.parents[1])


@pytest.mark.parametrize("harm", [truncate, Path.unlink, folder_gone], ids=["truncated", "missing", "all gone"])
def test_a_copy_that_lost_something_is_downloaded_again_to_the_same_place(cache, root, harm):
    cache.fetch("m-1", filling).release()
    harm(root / "m-1" / WEIGHTS)
    files = cache.fetch("m-1", filling)
    assert files.directory == root / "m-1"
    assert is_whole("m-1", files.directory)
    assert contents(root) == COMPLETE
    assert cache.fetch("m-1", pytest.fail).directory == files.directory


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"MLmodel": 1}', b"null"])
def test_a_copy_with_an_unreadable_manifest_is_downloaded_again(cache, root, content):
    cache.fetch("m-1", filling).release()
    (root / ".manifests" / "m-1.json").write_bytes(content)
    assert cache.fetch("m-1", filling).directory == root / "m-1"
    assert contents(root) == COMPLETE


def test_a_copy_that_was_replaced_while_somebody_waited_for_it_is_held_as_it_is_now(cache, root):
    cache.fetch("m-1", filling).release()
    manifest = root / ".manifests" / "m-1.json"
    with manifest.open("rb") as removed, ThreadPoolExecutor(1) as pool:
        fcntl.flock(removed, fcntl.LOCK_EX)
        waiting = pool.submit(cache.fetch, "m-1", pytest.fail)
        time.sleep(0.2)
        content = manifest.read_bytes()
        manifest.unlink()
        manifest.write_bytes(content)
        fcntl.flock(removed, fcntl.LOCK_UN)
        files = waiting.result(timeout=20)
    ArtifactCache(root, 0).fetch("m-2", filling).release()
    assert is_whole("m-1", files.directory)


def test_files_that_came_later_do_not_matter(cache, root):
    cache.fetch("m-1", filling).release()
    (root / "m-1" / "__pycache__").mkdir()
    (root / "m-1" / "__pycache__" / "code.pyc").write_bytes(b"compiled")
    assert cache.fetch("m-1", pytest.fail).directory == root / "m-1"


def test_a_damaged_copy_stays_for_those_who_use_it_and_goes_with_the_last_of_them(cache, root, start):
    user = start()
    user.fetch("m-1")
    truncate(root / "m-1" / WEIGHTS)

    fresh = cache.fetch("m-1", filling)
    assert fresh.directory == root / "m-1~2"
    assert is_whole("m-1", fresh.directory)
    assert (root / "m-1" / "MLmodel").exists()
    assert ArtifactCache(root).fetch("m-1", pytest.fail).directory == fresh.directory

    user.release("m-1")
    assert not (root / "m-1").exists()
    assert cache.fetch("m-1", pytest.fail).directory == fresh.directory
    assert [path.name for path in (root / ".manifests").iterdir()] == ["m-1~2.json"]


def test_a_rotten_copy_is_found_by_its_checksums_and_not_kept(cache, root):
    files = cache.fetch("m-1", filling)
    assert files.verify()
    rot(root / "m-1" / WEIGHTS)
    assert cache.fetch("m-1", pytest.fail).directory == files.directory  # sizes tell nothing

    others = cache.fetch("m-1", pytest.fail)
    assert not files.verify()
    assert not others.verify()
    files.release()
    fresh = cache.fetch("m-1", filling)
    assert is_whole("m-1", fresh.directory)
    assert fresh.verify()
    assert fresh.directory == root / "m-1~2"  # others still use the old one


def test_a_rotten_copy_that_nobody_else_uses_is_replaced_in_its_place(cache, root):
    files = cache.fetch("m-1", filling)
    rot(files.directory / WEIGHTS)
    assert not files.verify()
    files.release()
    assert contents(root) == NOTHING
    assert cache.fetch("m-1", filling).directory == root / "m-1"


def test_what_others_put_into_the_root_is_never_touched(root):
    root.mkdir()
    (root / "m-1").mkdir()
    (root / "m-1" / "thesis.txt").write_text("mine")
    (root / "photos").mkdir()
    cache = ArtifactCache(root, 0)
    files = cache.fetch("m-1", filling)
    assert files.directory == root / "m-1~2"
    files.release()
    assert cache.usage().models == 0
    assert (root / "m-1" / "thesis.txt").read_text() == "mine"
    assert (root / "photos").is_dir()
