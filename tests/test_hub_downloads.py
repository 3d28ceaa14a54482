"""The Hugging Face hub as a source of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_serve.downloaders import Download, Progress
from registry_serve.errors import DownloadFailed
from tests.download_workers import Downloader
from tests.model_hub import Hub, model_hub
from tests.object_stores import contents

FILES = {"config.json": b'{"a": 1}', "weights/part-1": b"w" * 300_000}


@pytest.fixture
def hub():
    with model_hub() as started:
        yield started


@pytest.fixture
def download(hub: Hub, tmp_path: Path):
    """Download in a process of its own, since Hugging Face reads its settings when it is imported."""
    started: list[Downloader] = []
    folders = {"HF_HOME": str(tmp_path / "hub"), "REGISTRY_SERVE_ARTIFACTS": str(tmp_path / "artifacts")}

    def start(hf_path: str, **environment: str) -> Downloader:
        settings = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_TELEMETRY": "1", **folders, **environment}
        started.append(Downloader(settings, Download(None, {"hf_path": hf_path})).go())
        return started[-1]

    yield start
    for each in started:
        each.kill()


def test_a_model_lands_in_the_cache_of_hugging_face_and_is_downloaded_once(hub, download, tmp_path):
    commit = hub.publish("org/name", FILES)
    downloaders = [download("org/name", HF_TOKEN="hf_secret") for _ in range(3)]
    directories = {each.directory() for each in downloaders}
    snapshot = tmp_path / "hub" / "hub" / "models--org--name" / "snapshots" / commit
    assert directories == {snapshot}
    assert contents(snapshot) == FILES
    assert sorted(hub.downloads()) == ["config.json", "part-1"]
    assert hub.tokens == {"Bearer hf_secret"}


def test_progress_counts_the_bytes_of_all_files(hub, download):
    hub.publish("org/name", FILES)
    downloader = download("org/name")
    lines = [downloader.line()]
    while isinstance(lines[-1], Progress):
        lines.append(downloader.line())
    total = sum(map(len, FILES.values()))
    assert (lines[0].what, lines[0].done_bytes, lines[0].total_bytes) == ("org/name", 0, None)
    assert (lines[-2].what, lines[-2].done_bytes, lines[-2].total_bytes) == ("org/name", total, total)


def test_new_content_of_a_branch_is_fetched_and_a_named_revision_stays(hub, download):
    first = hub.publish("org/name", FILES)
    assert download("org/name").directory().name == first
    second = hub.publish("org/name", {**FILES, "config.json": b"{}"})
    new = download("org/name").directory()
    assert new.name == second
    assert contents(new)["config.json"] == b"{}"
    assert hub.downloads().count("part-1") == 1
    old = download(f"org/name@{first}").directory()
    assert contents(old) == FILES


def test_a_hub_that_does_not_answer_leaves_what_is_in_the_cache(hub, download):
    hub.publish("org/name", FILES)
    directory = download("org/name").directory()
    hub.is_down = True
    assert download("org/name").directory() == directory
    failed = download("org/other").end()
    assert isinstance(failed, DownloadFailed)
    assert "does not answer" in str(failed)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("org/unknown", "has no such model, or it is private"),
        ("gated/name", "its authors must grant access"),
        ("org/name@nowhere", "no such revision"),
        ("https://user:hf_secret@huggingface.co/org/name", "it is no name such as organisation/name"),
    ],
)
def test_what_cannot_be_downloaded_is_said_in_one_sentence(hub, download, path, reason):
    hub.publish("org/name", FILES)
    failed = download(path).end()
    assert isinstance(failed, DownloadFailed)
    assert reason in str(failed)
    assert "hf_secret" not in str(failed)
    assert "\n" not in str(failed)
