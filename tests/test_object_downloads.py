"""Object stores as sources of models: real ones, over wires that are slow, cut or noisy."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from registry_serve.downloaders import Download, Progress, fetch
from registry_serve.errors import DownloadFailed
from tests.download_workers import Downloader
from tests.mlflow_server import free_port
from tests.object_stores import MIB, Bucket, GoogleBucket, S3Bucket, contents, google_emulator, moto_server

#: Found by the wires that are noisy.
SPOT = b"the-right-content"


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


FILES = {
    "config.json": b'{"a": 1}',
    "weights/part-1": noise(300_000),
    "weights/part-2": b"2" * 1000 + SPOT,
    "empty": b"",
    "a b&c+dé": b"1",
}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture(scope="module")
def amazon() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    with google_emulator() as address:
        yield address


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def s3(amazon, root, monkeypatch):
    return entered(S3Bucket(amazon), root, monkeypatch)


@pytest.fixture
def gcs(google, root, monkeypatch):
    return entered(GoogleBucket(google), root, monkeypatch)


@pytest.fixture(params=["s3", "gcs"])
def bucket(request):
    return request.getfixturevalue(request.param)


def entered(bucket: Bucket, root: Path, monkeypatch) -> Bucket:
    for name, value in {**bucket.environment, "REGISTRY_SERVE_ARTIFACTS": str(root)}.items():
        monkeypatch.setenv(name, value)
    return bucket


def of(bucket: Bucket, path: str) -> Download:
    return Download(None, {bucket.key: bucket.uri(path)})


@pytest.fixture
def start():
    """Download in other processes."""
    started: list[Downloader] = []

    def make(bucket: Bucket, path: str, **environment: str) -> Downloader:
        root = {"REGISTRY_SERVE_ARTIFACTS": os.environ["REGISTRY_SERVE_ARTIFACTS"]}
        started.append(Downloader({**bucket.environment, **root, **environment}, of(bucket, path)).go())
        return started[-1]

    yield make
    for each in started:
        each.kill()


def contents_asked_for(bucket: Bucket) -> list[str]:
    """Return the heads of the requests for what is in files."""
    path = "/mpt/" if isinstance(bucket, S3Bucket) else "/download/"
    return bucket.wire.of("GET", path)


def folders(root: Path) -> list[str]:
    """The copies that are complete, of all addresses."""
    return sorted(path.name for path in root.glob(".downloads/copies/*/*") if not path.name.startswith("."))


# --- what is there --------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_directory_and_its_neighbours_do_not(bucket, root):
    bucket.fill("models/mpt", FILES)
    bucket.fill("models/mpt-30b", {"config.json": b"{}"})
    bucket.put("models/mpt/weights/", b"")  # as consoles mark folders
    seen: list[Progress] = []
    directory = fetch(of(bucket, "models/mpt"), seen.append)
    assert contents(directory) == FILES
    assert directory.name.startswith("mpt-")
    assert directory.is_relative_to(root)
    assert (seen[-1].what, seen[-1].done_bytes, seen[-1].total_bytes) == (bucket.uri("models/mpt"), TOTAL, TOTAL)
    assert fetch(of(bucket, "models/mpt/")) == directory
    assert set(contents(fetch(of(bucket, "")))) == {f"models/mpt/{name}" for name in FILES} | {
        "models/mpt-30b/config.json"
    }


def test_a_single_file_may_be_named(bucket):
    bucket.fill("models", {"weights.bin": b"w", "weights.bin.json": b"{}"})
    assert contents(fetch(of(bucket, "models/weights.bin"))) == {"weights.bin": b"w"}


def test_what_is_there_is_not_downloaded_again_and_new_content_is(bucket, root):
    bucket.fill("mpt", FILES)
    first = fetch(of(bucket, "mpt"))
    asked = len(contents_asked_for(bucket))
    assert asked == len([content for content in FILES.values() if content])
    assert fetch(of(bucket, "mpt")) == first
    assert len(contents_asked_for(bucket)) == asked

    bucket.put("mpt/config.json", b'{"a": 2}')
    bucket.delete("mpt/empty")
    second = fetch(of(bucket, "mpt"))
    changed = {**FILES, "config.json": b'{"a": 2}'}
    del changed["empty"]
    assert contents(second) == changed
    assert contents(first) == FILES  # this process may be reading it
    assert folders(root) == sorted([first.name, second.name])


def test_a_copy_of_old_content_goes_when_no_process_has_it(bucket, root, start):
    bucket.fill("mpt", FILES)
    bucket.wire.bytes_per_s = TOTAL
    downloads = start(bucket, "mpt")
    downloads.line()
    waits = start(bucket, "mpt")
    first = downloads.directory()
    assert waits.directory() == first
    bucket.wire.bytes_per_s = None
    downloads.kill()
    bucket.put("mpt/config.json", b"2")
    second = start(bucket, "mpt").directory()
    assert folders(root) == sorted([first.name, second.name])
    waits.kill()
    assert fetch(of(bucket, "mpt")) == second
    assert folders(root) == [second.name]


def test_files_that_somebody_removed_or_cut_are_downloaded_again(bucket):
    bucket.fill("mpt", FILES)
    directory = fetch(of(bucket, "mpt"))
    asked = len(contents_asked_for(bucket))
    (directory / "config.json").unlink()
    os.truncate(directory / "weights" / "part-2", 10)
    assert fetch(of(bucket, "mpt")) == directory
    assert contents(directory) == FILES
    assert len(contents_asked_for(bucket)) == asked + 2


def test_processes_that_ask_meanwhile_take_what_one_of_them_downloads(bucket, start):
    bucket.fill("mpt", FILES)
    bucket.wire.bytes_per_s = 64_000
    downloaders = [start(bucket, "mpt")]
    downloaders[0].line()
    downloaders += [start(bucket, "mpt") for _ in range(2)]
    for each in downloaders[1:]:
        each.line()
    bucket.wire.bytes_per_s = None
    [directory] = {each.directory() for each in downloaders}
    assert contents(directory) == FILES
    assert len(contents_asked_for(bucket)) == len([content for content in FILES.values() if content])
    assert len([head for head in bucket.wire.requests if "prefix=mpt" in head.splitlines()[0]]) == 1


# --- broken off -----------------------------------------------------------------------------------------------------


def test_what_a_killed_process_began_is_finished_by_the_next(bucket, root, start):
    # Google's client hands on what it has in pieces of 8 MiB.
    large = noise(4 * MIB) if isinstance(bucket, S3Bucket) else noise(20 * MIB)
    bucket.fill("mpt", {"config.json": b"{}", "weights": large})
    bucket.wire.bytes_per_s = len(large)
    killed = start(bucket, "mpt")
    while (progress := killed.line()).done_bytes < len(large) / 3:
        pass
    killed.kill()
    came, asked = bucket.wire.came_altogether(), len(contents_asked_for(bucket))
    assert progress.total_bytes == len(large) + 2
    assert folders(root) == []
    bucket.wire.bytes_per_s = None

    directory = start(bucket, "mpt").directory()
    assert contents(directory) == {"config.json": b"{}", "weights": large}
    further = contents_asked_for(bucket)[asked:]
    assert not any("config.json" in head for head in further)
    begun = int(re.search(r"[Rr]ange: bytes=(\d+)-", further[0])[1])
    assert begun >= len(large) / 3 - MIB
    assert bucket.wire.came - came < len(large) - begun + 100_000
    if isinstance(bucket, S3Bucket):
        assert "If-Match: " in further[0]
    else:
        assert "ifGenerationMatch=" in further[0]


def test_what_rotted_since_it_broke_off_begins_anew(s3, start, root):
    large = noise(3 * MIB)
    s3.fill("mpt", {"weights": large})
    s3.wire.bytes_per_s = len(large)
    killed = start(s3, "mpt")
    while killed.line().done_bytes < len(large) / 3:
        pass
    killed.kill()
    s3.wire.bytes_per_s = None
    [part] = root.glob(".downloads/copies/*/.partial/parts/*")
    with part.open("r+b") as file:
        file.write(bytes([large[0] ^ 1]))
    assert contents(fetch(of(s3, "mpt"))) == {"weights": large}


def test_what_changed_since_it_broke_off_begins_anew(s3, start):
    large, other = noise(3 * MIB), noise(3 * MIB + 1)
    s3.fill("mpt", {"config.json": b"{}", "weights": large})
    s3.wire.bytes_per_s = len(large)
    killed = start(s3, "mpt")
    while killed.line().done_bytes < len(large) / 3:
        pass
    killed.kill()
    s3.wire.bytes_per_s = None
    s3.put("mpt/weights", other)
    assert contents(fetch(of(s3, "mpt"))) == {"config.json": b"{}", "weights": other}


def test_a_connection_that_breaks_is_taken_up_where_it_broke(s3):
    large = noise(4 * MIB)
    s3.put("mpt/weights", large)
    s3.wire.cut_after = 2 * MIB
    assert contents(fetch(of(s3, "mpt"))) == {"weights": large}
    assert any("Range: bytes=" in head for head in s3.wire.of("GET", "/mpt/"))
    assert s3.wire.came < 5 * MIB


def test_a_file_that_is_replaced_while_it_comes_is_listed_again(s3, start):
    s3.fill("mpt", {"weights": noise(6 * MIB), "x": b"x"})
    s3.wire.bytes_per_s = 2 * MIB
    downloader = start(s3, "mpt")
    while downloader.line().done_bytes < MIB:
        pass
    s3.wire.bytes_per_s = None
    s3.wire.cut_after = s3.wire.came
    s3.put("mpt/weights", noise(5 * MIB))
    assert contents(downloader.directory()) == {"weights": noise(5 * MIB), "x": b"x"}


def test_content_that_came_wrong_is_fetched_once_more(bucket):
    bucket.fill("mpt", FILES)
    bucket.wire.noise = SPOT, SPOT.swapcase(), 1
    assert contents(fetch(of(bucket, "mpt"))) == FILES
    assert bucket.wire.noise[2] == 0


def test_content_that_always_comes_wrong_is_never_used(bucket, root):
    bucket.fill("mpt", FILES)
    bucket.wire.noise = SPOT, SPOT.swapcase(), 100
    with pytest.raises(DownloadFailed, match="'weights/part-2' arrived twice with another checksum"):
        fetch(of(bucket, "mpt"))
    assert bucket.wire.noise[2] == 98
    assert folders(root) == []


def test_what_was_uploaded_in_parts_to_s3_is_one_file(s3):
    upload = s3.client.create_multipart_upload(Bucket=s3.name, Key="mpt/weights")["UploadId"]
    named = {"Bucket": s3.name, "Key": "mpt/weights", "UploadId": upload}
    parts = [noise(5 * MIB), noise(1 * MIB)]
    done = [s3.client.upload_part(**named, PartNumber=n, Body=part)["ETag"] for n, part in enumerate(parts, 1)]
    s3.client.complete_multipart_upload(
        **named, MultipartUpload={"Parts": [{"ETag": etag, "PartNumber": n} for n, etag in enumerate(done, 1)]}
    )
    assert "-2" in s3.client.head_object(Bucket=s3.name, Key="mpt/weights")["ETag"]
    assert contents(fetch(of(s3, "mpt"))) == {"weights": b"".join(parts)}


# --- what cannot be had ---------------------------------------------------------------------------------------------


def silent(bucket: Bucket) -> dict[str, str]:
    """Return what a process needs to reach the store at a port where nobody listens."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    return {name: nowhere if "http" in value else value for name, value in bucket.environment.items()}


def test_the_last_complete_copy_serves_while_the_store_is_silent(bucket, monkeypatch, caplog):
    monkeypatch.setattr("registry_serve.downloaders.gcs._PATIENCE_S", 0.5)
    bucket.fill("mpt", FILES)
    directory = fetch(of(bucket, "mpt"))
    for name, value in silent(bucket).items():
        monkeypatch.setenv(name, value)
    assert fetch(of(bucket, "mpt")) == directory
    assert "The copy from an earlier download is used" in caplog.text

    (directory / "config.json").unlink()
    for path in ("mpt", "never"):
        with pytest.raises(DownloadFailed, match="the store does not answer"):
            fetch(of(bucket, path))


@pytest.mark.parametrize(
    "name", ["../../escaped", "/escaped", "a/../../escaped", "a//b", "./a", "..", "a\\..\\b", "x" * 300]
)
def test_a_file_whose_name_leads_elsewhere_is_refused(s3, root, name):
    s3.fill("mpt", {"config.json": b"{}", name: b"evil"})
    with pytest.raises(DownloadFailed, match="is no path inside a folder"):
        fetch(of(s3, "mpt"))
    assert list(root.parent.rglob("*escaped*")) == []
    assert folders(root) == []


def test_a_file_that_is_also_a_folder_is_refused(bucket):
    bucket.fill("mpt", {"a": b"1", "a/b": b"2"})
    with pytest.raises(DownloadFailed, match="'a', which is no path inside a folder"):
        fetch(of(bucket, "mpt"))


def test_what_is_missing_is_said(bucket):
    bucket.fill("mpt", FILES)
    with pytest.raises(DownloadFailed, match="there is no file under it"):
        fetch(of(bucket, "mp"))
    missing = bucket.uri("a").replace(bucket.name, "no-such-bucket")
    with pytest.raises(DownloadFailed, match="no-such-bucket/a cannot be downloaded: there is no such bucket"):
        fetch(Download(None, {bucket.key: missing}))


@pytest.mark.parametrize(
    "path",
    [
        "bucket/a",
        "http://bucket/a",
        "{scheme}:///a",
        "",
        "{scheme}://key:s3cr3t@bucket/a?sig=s3cr3t",
        "{scheme}://[s3cr3t",
        3,
    ],
)
def test_an_address_that_is_none_is_refused_and_shows_no_secret(bucket, path):
    path = path.format(scheme=bucket.scheme) if isinstance(path, str) else path
    with pytest.raises(
        DownloadFailed, match=f"it is no address such as {bucket.scheme}://|has credentials in it"
    ) as no:
        fetch(Download(None, {bucket.key: path}))
    assert "s3cr3t" not in str(no.value)


def test_a_key_that_the_store_does_not_know_is_denied_and_never_shown(s3, start, amazon):
    s3.fill("mpt", FILES)
    requests.post(f"{amazon}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
    try:
        denied = start(s3, "mpt").end()
    finally:
        requests.post(f"{amazon}/moto-api/reset-auth", data="inf", timeout=10).raise_for_status()
    assert isinstance(denied, DownloadFailed)
    assert "access is denied (InvalidAccessKeyId); check the credentials" in str(denied)
    assert "the-key" not in str(denied)


def test_a_public_bucket_needs_no_credentials(s3, start):
    s3.fill("mpt", FILES)
    s3.client.put_bucket_acl(Bucket=s3.name, ACL="public-read")
    for name in FILES:
        s3.client.put_object_acl(Bucket=s3.name, Key=f"mpt/{name}", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del s3.environment[name]
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    assert contents(start(s3, "mpt", **nowhere).directory()) == FILES
    assert not any("authorization" in head.lower() for head in s3.wire.requests)


def test_a_disk_without_room_is_noticed_before_the_download(bucket, monkeypatch):
    bucket.fill("mpt", FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadFailed, match=r"0\.0 GB are missing and the disk has 0\.0 GB free; free some space"):
        fetch(of(bucket, "mpt"))
    assert contents_asked_for(bucket) == []
