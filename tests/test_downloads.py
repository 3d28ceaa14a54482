"""Downloaders: which function it is, and that it runs once per node."""

from __future__ import annotations

import fcntl
import functools
import json
import pickle
import time
from pathlib import Path

import pytest

from registry_serve.downloaders import ArtifactCache, Download, Progress, fetch, forget, under_way
from registry_serve.errors import ConfigurationError, DownloadFailed
from tests.download_workers import Downloader

CODE = """
import errno, os, pathlib, sys, time

def remember(folder, name="model", seconds=0.0):
    with open(f"{folder}/calls", "a") as calls:
        calls.write(f"{name}\\n")
    time.sleep(seconds)
    made = pathlib.Path(folder, name)
    made.mkdir(exist_ok=True)
    (made / "weights").write_text("w")
    return made

def nothing(folder):
    remember(folder)

def text(folder):
    return str(remember(folder))

def elsewhere(folder):
    return "no such directory"

def fail(folder):
    remember(folder)
    raise ValueError("the key is s3cr3t")

def leave(folder):
    sys.exit(1)

def fill_the_disk(folder):
    raise OSError(errno.ENOSPC, "No space left on device", folder)

async def later(folder): ...

def bit_by_bit(folder):
    yield

def only_by_place(folder, /): ...

not_a_function = 1
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A repository with a folder name that no import statement can spell."""
    package = tmp_path / "repository" / f"examples-{tmp_path.name}" / "inference-deployments"
    package.mkdir(parents=True)
    (package / "downloads.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "repository"))
    return tmp_path


@pytest.fixture
def dotted(folder):
    def name(function: str) -> str:
        return f"examples-{folder.name}.inference-deployments.downloads.{function}"

    return name


@pytest.fixture
def start(root, folder):
    """Download in another process."""
    started: list[Downloader] = []

    def make(download: Download) -> Downloader:
        started.append(Downloader({"REGISTRY_SERVE_ARTIFACTS": str(root)}, download, folder / "repository"))
        return started[-1]

    yield make
    for each in started:
        each.kill()


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- once per node --------------------------------------------------------------------------------------------------


def test_a_function_runs_once_for_its_parameters_and_its_code(folder, dotted):
    download = Download(dotted("remember"), {"folder": str(folder)})
    assert fetch(download) == folder / "model"
    assert fetch(download) == folder / "model"
    assert calls(folder) == ["model"]

    assert fetch(Download(dotted("remember"), {"folder": str(folder), "name": "other"})) == folder / "other"
    assert calls(folder) == ["model", "other"]

    source = folder / "repository" / f"examples-{folder.name}" / "inference-deployments" / "downloads.py"
    source.write_text(CODE + "# changed\n")
    fetch(download)
    assert calls(folder) == ["model", "other", "model"]


def test_what_a_function_returns_is_the_models_directory_if_it_is_one(folder, dotted):
    parameters = {"folder": str(folder)}
    assert fetch(Download(dotted("text"), parameters)) == folder / "model"
    assert fetch(Download(dotted("nothing"), parameters)) is None
    assert fetch(Download(dotted("elsewhere"), parameters)) is None


def test_nothing_to_download_is_nothing(root):
    assert fetch(Download()) is None
    assert not forget(Download())
    assert under_way() == []
    assert not root.exists()


def test_a_directory_that_was_removed_is_made_again(folder, dotted):
    download = Download(dotted("remember"), {"folder": str(folder)})
    made = fetch(download)
    (made / "weights").unlink()
    made.rmdir()
    assert fetch(download) == made
    assert calls(folder) == ["model", "model"]


def test_a_reboot_may_have_removed_what_a_function_wrote(root, folder, dotted):
    download = Download(dotted("nothing"), {"folder": str(folder)})
    fetch(download)
    [marker] = root.glob(".downloads/done/*")
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "boot": "another"}))
    fetch(download)
    marker.write_text("{")
    fetch(download)
    assert len(calls(folder)) == 3


def test_processes_that_ask_at_the_same_time_run_it_once(folder, dotted, start):
    download = Download(dotted("remember"), {"folder": str(folder), "seconds": 1.0})
    downloaders = [start(download) for _ in range(3)]
    for each in downloaders:
        each.go()
    assert [each.directory() for each in downloaders] == [folder / "model"] * 3
    assert calls(folder) == ["model"]


def test_who_is_killed_meanwhile_is_taken_over_from(folder, dotted, start):
    download = Download(dotted("remember"), {"folder": str(folder), "seconds": 1.0})
    dead, next_one = start(download), start(download)
    dead.go()
    wait_for((folder / "calls").exists)
    next_one.go().line()
    dead.kill()
    assert next_one.directory() == folder / "model"
    assert calls(folder) == ["model"] * 2


def test_who_fails_leaves_no_marker_and_says_only_what_kind_of_error_it_was(folder, dotted, caplog):
    download = Download(dotted("fail"), {"folder": str(folder)})
    for _ in range(2):
        with pytest.raises(DownloadFailed, match=r"raised ValueError; the log has its message\.$") as failed:
            fetch(download)
        assert "s3cr3t" not in str(failed.value)
    assert "s3cr3t" in caplog.text
    assert calls(folder) == ["model"] * 2
    with pytest.raises(DownloadFailed, match="SystemExit"):
        fetch(Download(dotted("leave"), {"folder": str(folder)}))


def test_a_full_disk_is_called_so(folder, dotted):
    with pytest.raises(DownloadFailed, match="the disk is full; free some space on it"):
        fetch(Download(dotted("fill_the_disk"), {"folder": str(folder)}))


def test_a_root_that_cannot_be_made_is_an_error_of_the_download(folder, dotted, monkeypatch):
    (folder / "file").touch()
    root = folder / "file" / "artifacts"
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", str(root))
    with pytest.raises(DownloadFailed, match=r"NotADirectoryError.*REGISTRY_SERVE_ARTIFACTS") as failed:
        fetch(Download(dotted("nothing"), {"folder": str(folder)}))
    assert f"the folder {root}/.downloads cannot be used" in str(failed.value)
    assert "the downloader raised" not in str(failed.value)
    assert not (folder / "calls").exists()


def test_state_that_cannot_be_written_is_not_blamed_on_the_downloader(root, folder, dotted):
    download = Download(dotted("nothing"), {"folder": str(folder)})
    fetch(download)
    [marker] = root.glob(".downloads/done/*")
    marker.unlink()
    marker.with_suffix(".new").mkdir()
    with pytest.raises(DownloadFailed, match=r"\.downloads cannot be used \(IsADirectoryError\)"):
        fetch(download)


def test_forgetting_has_it_run_again_and_says_whether_that_may_help(folder, dotted, start):
    download = Download(dotted("remember"), {"folder": str(folder)})
    assert not forget(download)
    other = start(download).go()
    assert other.directory() == folder / "model"
    other.kill()
    fetch(download)
    assert calls(folder) == ["model"]
    assert forget(download)  # it relied on what the other had run
    assert not forget(download)
    fetch(download)
    assert calls(folder) == ["model"] * 2


def test_what_this_process_has_just_made_is_not_forgotten(folder, dotted, start):
    download = Download(dotted("remember"), {"folder": str(folder)})
    fetch(download)
    assert not forget(download)
    assert not forget(download)
    assert start(download).go().directory() == folder / "model"
    assert calls(folder) == ["model"]


def test_what_another_process_uses_is_not_forgotten_until_that_ends(folder, dotted, start, caplog):
    download = Download(dotted("remember"), {"folder": str(folder)})
    maker, user = start(download), start(download)
    for each in (maker, user):
        assert each.go().directory() == folder / "model"
    maker.kill()
    fetch(download)
    assert not forget(download)
    assert "another process of this node uses it" in caplog.text
    user.kill()
    assert forget(download)
    fetch(download)
    assert calls(folder) == ["model"] * 2


def test_who_forgets_is_in_the_way_of_no_other_process_that_does(root, folder, dotted, start):
    download = Download(dotted("remember"), {"folder": str(folder)})
    maker = start(download).go()
    assert maker.directory()
    fetch(download)
    assert not forget(download)
    maker.kill()
    [users] = root.glob(".downloads/users/*")
    with users.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_another_process_has_made_anew_meanwhile_is_not_forgotten(folder, dotted, start, root):
    download = Download(dotted("remember"), {"folder": str(folder)})
    assert start(download).go().directory()
    fetch(download)
    [marker] = root.glob(".downloads/done/*")
    marker.unlink()
    assert start(download).go().directory()
    assert forget(download)
    assert marker.exists()


# --- progress -------------------------------------------------------------------------------------------------------


def test_processes_of_the_node_see_what_is_under_way_until_it_ends_or_dies(folder, dotted, start):
    download = Download(dotted("remember"), {"folder": str(folder), "seconds": 60.0})
    running, waiting = start(download), start(download)
    told = running.go().line()
    assert isinstance(told, Progress)
    assert (told.what, told.done_bytes, told.total_bytes) == (dotted("remember"), 0, None)
    assert [each.what for each in under_way()] == [dotted("remember")]
    assert under_way()[0].started == told.started
    assert waiting.go().line() == told
    waiting.kill()
    running.kill()
    assert under_way() == []


def test_what_has_ended_is_not_under_way_any_more(folder, dotted):
    seen = []
    fetch(Download(dotted("remember"), {"folder": str(folder)}), lambda _: seen.append(under_way()))
    assert len(seen[0]) == 1
    assert under_way() == []


def test_who_fails_to_hear_of_progress_does_not_end_the_download(folder, dotted):
    assert fetch(Download(dotted("remember"), {"folder": str(folder)}), lambda _: 1 / 0) == folder / "model"


def test_the_cache_of_artifacts_leaves_downloads_alone(root, folder, dotted):
    download = Download(dotted("nothing"), {"folder": str(folder)})
    fetch(download)
    cache = ArtifactCache(max_bytes=0)
    cache.fetch("m-1", lambda directory: (directory / "MLmodel").write_text("m")).release()
    assert cache.usage().used_bytes == 0
    fetch(download)
    assert len(calls(folder)) == 1


# --- which function -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "parameters", "sentence"),
    [
        ("remember", {"folder": ".", "nmae": 1, "size": 2}, "takes no nmae, size; its parameters are: folder, name"),
        ("remember", {"name": "a"}, "needs folder in its parameters"),
        ("only_by_place", {"folder": "a"}, "takes no folder; its parameters are: none"),
        ("missing", {}, "has no function 'missing'"),
        ("not_a_function", {}, "is not a function"),
        ("later", {"folder": "a"}, "must be a plain function"),
        ("bit_by_bit", {"folder": "a"}, "must be a plain function"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_it_is(dotted, function, parameters, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        fetch(Download(dotted(function), parameters))
    assert dotted(function) in str(refused.value)


@pytest.mark.parametrize(
    ("download", "sentence"),
    [
        (Download(None, {"hf_path": "a", "s3_path": "b"}), "at most one may be given, not hf_path and s3_path"),
        (Download(None, {"checkpoint": "a"}), "Name a downloader for the parameters checkpoint"),
        (Download("nowhere.download", {}), "there is no module 'nowhere'"),
        (Download("nowhere", {}), "one of these names: .*gcs, huggingface, s3"),
        (Download("s3", {"gcp_path": "a"}), "takes no gcp_path; its parameters are: s3_path"),
        (Download(None, {"s3_path": "s3://a/b", "region": "a"}), "takes no region"),
    ],
)
def test_a_mistake_in_the_configuration_is_said_before_anything_runs(root, download, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        fetch(download)
    assert not root.exists()


def test_a_module_that_cannot_be_imported_is_named_without_its_message(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_download.py").write_text("raise RuntimeError('s3cr3t')")
    with pytest.raises(ConfigurationError, match=r"'broken_download\.run' raised RuntimeError\.$"):
        fetch(Download("broken_download.run", {}))


def test_a_package_brings_downloaders_under_names_of_its_own(folder, dotted, monkeypatch):
    installed = folder / "repository" / "theirs-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    module, _, name = dotted("remember").rpartition(".")
    (folder / "repository" / "theirs_downloads.py").write_text(
        f"import importlib\nremember = importlib.import_module({module!r}).{name}\n"
    )
    (installed / "entry_points.txt").write_text("[registry_serve.downloaders]\ntheirs = theirs_downloads:remember\n")
    assert fetch(Download("theirs", {"folder": str(folder)})) == folder / "model"


RAN = []


def given_itself(size):
    RAN.append(size)


class Store:
    def __init__(self, name):
        self.name = name

    def download(self):
        RAN.append(self.name)

    __call__ = download


def made_for(name):
    def download():
        RAN.append(name)

    return download


def test_a_function_can_be_given_itself():
    RAN.clear()
    for size in (1, 1, 2):
        fetch(Download(given_itself, {"size": size}))
    assert RAN == [1, 2]


@pytest.mark.parametrize(
    "function",
    [
        made_for("a"),
        Store("a").download,
        Store("a"),
        functools.partial(given_itself, 1),
        functools.wraps(given_itself)(made_for("a")),
        lambda: RAN.append("a"),
        Store.download,
    ],
    ids=["closure", "method", "instance", "partial", "decorated", "lambda", "of a class"],
)
def test_a_function_that_may_have_a_state_must_have_a_name_of_its_own(root, function):
    with pytest.raises(ConfigurationError, match="cannot be told from others like it: give a dotted path"):
        fetch(Download(function))
    assert not root.exists()


def test_functions_that_a_module_makes_are_told_apart_by_their_names(folder, dotted):
    source = folder / "repository" / f"examples-{folder.name}" / "inference-deployments" / "made.py"
    text = (
        "import functools, importlib\n"
        f"remember = importlib.import_module({dotted('remember').rpartition('.')[0]!r}).remember\n"
        "a, b = (functools.partial(remember, name=name) for name in 'ab')\n"
        "def made(name):\n    return lambda folder: remember(folder, name)\n"
        "c, d = map(made, 'cd')\n"
    )
    source.write_text(text)
    module = dotted("remember").replace("downloads.remember", "made")
    for name in "abcdabcd":
        assert fetch(Download(f"{module}.{name}", {"folder": str(folder)})) == folder / name
    assert calls(folder) == ["a", "b", "c", "d"]
    source.write_text(text + "# changed\n")
    fetch(Download(f"{module}.a", {"folder": str(folder)}))
    assert calls(folder) == ["a", "b", "c", "d", "a"]


def test_functions_from_the_same_line_are_told_apart_by_their_defaults(folder, monkeypatch):
    (folder / "repository" / "in_a_loop.py").write_text(
        "each = []\nfor kind in 'ab':\n    def download(folder, kind=kind):\n        return f'{folder}/{kind}'\n"
        "    each.append(download)\n"
    )
    import in_a_loop

    for name, function in zip("ab", in_a_loop.each, strict=True):
        (folder / name).mkdir()
        assert fetch(Download(function, {"folder": str(folder)})) == folder / name


def test_a_function_without_a_file_is_told_from_others_and_known_again():
    ran = []
    for text in ("a", "a", "b"):
        named = {"ran": ran}
        exec(f"def download(): ran.append(({text!r}, lambda: 1, 'x' in {{'x', 'y'}})[0])", named)
        fetch(Download(named["download"]))
    assert ran == ["a", "b"]


def test_a_download_travels(dotted):
    download = Download(dotted("remember"), {"folder": "a"})
    assert pickle.loads(pickle.dumps(download)) == download
