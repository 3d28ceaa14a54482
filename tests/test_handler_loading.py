"""Building a handler from what an earlier process has downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_serve.downloaders import Download, fetch
from registry_serve.errors import HandlerInvalid
from registry_serve.handlers import HandlerSpec, build
from tests.download_workers import Downloader

CODE = """
import pathlib

def download(folder):
    with open(f"{folder}/runs", "a") as runs:
        runs.write("run\\n")
    model = pathlib.Path(folder, "model")
    model.mkdir(exist_ok=True)
    (model / "weights").write_text("heavy")
    return model

def nothing(folder):
    with open(f"{folder}/runs", "a") as runs:
        runs.write("run\\n")
"""


class Weights:
    def __init__(self, model_name_or_path):
        self.text = Path(model_name_or_path, "weights").read_text()

    def predict(self, model_requests):
        return [self.text for _ in model_requests]


class Wrapping(Weights):
    def __init__(self, model_name_or_path):
        try:
            super().__init__(model_name_or_path)
        except FileNotFoundError as error:
            raise ValueError("there are no weights") from error


class Failing:
    """Fails as it is told to."""

    def __init__(self, error):
        raise error

    def predict(self, model_requests): ...


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", str(tmp_path / "artifacts"))
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / f"{tmp_path.name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "repository"))
    return tmp_path


@pytest.fixture
def start(folder):
    """Download in another process, which then uses the files."""
    started: list[Downloader] = []

    def make(download: Download) -> Downloader:
        settings = {"REGISTRY_SERVE_ARTIFACTS": str(folder / "artifacts")}
        started.append(Downloader(settings, download, folder / "repository").go())
        started[-1].end()
        return started[-1]

    yield make
    for each in started:
        each.kill()


def downloading(folder: Path, function: str = "download") -> Download:
    return Download(f"{folder.name}.{function}", {"folder": str(folder)})


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().split())


@pytest.mark.parametrize("kind", [Weights, Wrapping])
def test_files_that_are_missing_are_downloaded_again(folder, start, kind, caplog):
    start(downloading(folder)).kill()
    (folder / "model" / "weights").unlink()
    assert build(HandlerSpec(kind, {}, downloading(folder))).predict([{}]) == ["heavy"]
    assert runs(folder) == 2
    assert "is downloaded again: files of an earlier download are missing" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        PermissionError(13, "Permission denied"),
        ConnectionError("no answer"),
        OSError(28, "No space left on device"),
        HandlerInvalid("Failing", "it does not like this"),
    ],
    ids=repr,
)
def test_nothing_is_downloaded_again_for_another_failure(folder, start, error):
    start(downloading(folder)).kill()
    spec = HandlerSpec(Failing, {"error": error}, downloading(folder, "download"))
    for _ in range(3):
        with pytest.raises(HandlerInvalid):
            build(spec)
    assert runs(folder) == 1


def test_an_error_that_comes_of_a_network_is_not_one_about_missing_files(folder, start):
    class Silent(FileNotFoundError):
        """As Hugging Face's client calls it where the hub does not answer."""

    start(downloading(folder)).kill()
    error = OSError("cannot be loaded")
    error.__cause__ = Silent("no answer")
    with pytest.raises(HandlerInvalid):
        build(HandlerSpec(Failing, {"error": error}, downloading(folder)))
    assert runs(folder) == 1


def test_a_handler_that_cannot_be_built_from_a_new_download_leaves_it_for_the_next_start(folder, start):
    spec = HandlerSpec(Failing, {"error": FileNotFoundError("weights")}, downloading(folder, "nothing"))
    with pytest.raises(HandlerInvalid):
        build(spec)
    assert runs(folder) == 1
    start(downloading(folder, "nothing"))
    assert runs(folder) == 1


def test_files_that_another_process_uses_are_not_downloaded_again(folder, start):
    user = start(downloading(folder))
    (folder / "model" / "weights").unlink()
    spec = HandlerSpec(Weights, {}, downloading(folder))
    with pytest.raises(HandlerInvalid, match="FileNotFoundError"):
        build(spec)
    assert runs(folder) == 1
    user.kill()
    assert build(spec).predict([{}]) == ["heavy"]
    assert runs(folder) == 2


def test_a_handler_is_built_from_what_is_there_without_another_run(folder, start):
    start(downloading(folder))
    assert build(HandlerSpec(Weights, {}, downloading(folder))).predict([{}, {}]) == ["heavy"] * 2
    assert fetch(downloading(folder)) == folder / "model"
    assert runs(folder) == 1
