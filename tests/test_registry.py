"""The registry client against a real MLflow: a server over HTTP, and a database file without one."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.models import set_signature

from registry_serve.downloaders import ArtifactCache
from registry_serve.errors import (
    ConfigurationError,
    LoadFailed,
    ModelNotFound,
    RegistryUnavailable,
    VersionForbidden,
    VersionNotFound,
)
from registry_serve.policies import RegistryAddress, VersionPolicy
from registry_serve.registry import (
    ModelVersion,
    Reference,
    Registry,
    VersionKey,
    impatient_http,
    make_http_impatient,
    parse_reference,
)
from registry_serve.registry.answers import asking, reading_artifacts
from registry_serve.registry.patience import patient_downloads
from tests.mlflow_server import DOUBLE, TEXT, MlflowServer, Place, embedded, free_port, made_global, shared_server

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="session")
def server() -> MlflowServer:
    return shared_server()


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Place:
    return embedded(tmp_path_factory.mktemp("database"))


@pytest.fixture(params=["server", "database"])
def place(request) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture
def models_dir(tmp_path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def open_registry(models_dir):
    """Return a function that opens a registry at a place, impatiently."""

    def open_it(place: Place | str, timeout_s: float = 4.0) -> Registry:
        uri = place if isinstance(place, str) else place.uri
        return Registry(RegistryAddress(uri, timeout_s=timeout_s), ArtifactCache(models_dir))

    with impatient_http(RegistryAddress("unused", timeout_s=4.0)):
        yield open_it


@pytest.fixture
def name(request) -> str:
    """A model name that no other test uses."""
    return request.node.name.replace("[", "-").replace("]", "")


# --- what a client may write ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("3", Reference("number", "3")),
        ("03", Reference("number", "3")),
        (" 3 ", Reference("number", "3")),
        ("0", Reference("number", "0")),
        ("9999999999", Reference("number", "9999999999")),
        ("latest", Reference("latest", "latest")),
        ("@latest", Reference("latest", "latest")),
        ("champion", Reference("alias", "champion")),
        ("@champion", Reference("alias", "champion")),
        ("Champion", Reference("alias", "Champion")),
        ("@7", Reference("alias", "7")),
        ("@12345678901", Reference("alias", "12345678901")),
        ("v-1_x", Reference("alias", "v-1_x")),
    ],
)
def test_a_reference_is_a_number_latest_or_an_alias(text, meaning):
    assert parse_reference(text) == meaning


@pytest.mark.parametrize(
    "text",
    ["../1", "a b", "12345678901", "\uff11", "\u0663", "", "@", "@@a", "a@b", "1.0", "é", "a\nb", "1;2", "a/b", "%31"],
)
def test_anything_else_is_no_reference(text):
    assert parse_reference(text) is None


def test_a_reference_is_written_so_that_it_can_be_read_again():
    for text in ("3", "latest", "@champion", "@7"):
        assert str(parse_reference(text)) == text


# --- reading versions ----------------------------------------------------------------------------------------------


def test_a_version_is_read_with_its_card(place, open_registry, name):
    place.register(name, input_example=pd.DataFrame({"x": [1.5]}))
    place.client.set_registered_model_alias(name, "zeta", "1")
    place.client.set_registered_model_alias(name, "champion", "1")

    version = open_registry(place).version(name, "1")

    assert (version.model, version.number, version.aliases) == (name, "1", ("champion", "zeta"))
    assert version.model_uuid.startswith("m-")
    assert abs(datetime.now(timezone.utc) - version.created) < timedelta(minutes=5)
    assert version.key == VersionKey(name, "1", version.model_uuid, version.revision)
    card = version.card
    assert card.signature == DOUBLE
    assert card.input_example == {"dataframe_split": {"columns": ["x"], "data": [[1.5]]}}
    assert (card.flavor, card.mlflow_version) == ("mlflow.pyfunc.model", mlflow.__version__)
    assert (card.from_type_hint, card.code_paths, card.from_code, card.streamable) == (False, False, False, False)
    assert card.size_bytes > 0


def test_a_record_survives_pickling_with_all_that_mlflow_keeps_beside_the_signature(database, open_registry, name):
    class Typed(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str], params=None) -> list[str]:
            return model_input

    database.register(name, python_model=Typed(), signature=None)
    version = open_registry(database).version(name, "1")
    copy: ModelVersion = pickle.loads(pickle.dumps(version))
    assert copy == version
    assert version.card.from_type_hint
    assert copy.card.signature._is_signature_from_type_hint


def test_a_card_tells_code_that_a_model_brings_and_code_that_is_the_model(database, open_registry, name, tmp_path):
    (tmp_path / f"side_{os.getpid()}.py").write_text("ANSWER = 42\n")
    script = tmp_path / "as_code.py"
    script.write_text(
        "import mlflow\n"
        "class M(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return model_input\n"
        "    def predict_stream(self, context, model_input, params=None):\n"
        "        yield model_input\n"
        "mlflow.models.set_model(M())\n"
    )
    database.register(name, code_paths=[str(tmp_path / f"side_{os.getpid()}.py")])
    database.register(name, python_model=str(script), signature=None)
    registry = open_registry(database)

    brings, is_code = registry.version(name, "1").card, registry.version(name, "2").card
    assert (brings.code_paths, brings.from_code) == (True, False)
    assert (is_code.code_paths, is_code.from_code, is_code.streamable) == (False, True, True)
    assert is_code.signature is None
    assert is_code.input_example is None


def test_reading_a_card_fetches_no_weights_and_leaves_nothing_behind(
    place, open_registry, name, models_dir, tmp_path, monkeypatch
):
    place.register(name, input_example=pd.DataFrame({"x": [1.5]}))
    with (place.files_of(name, "1") / "python_model.pkl").open("wb") as weights:
        weights.truncate(40 * 2**30)  # a hole on the disk, but forty gigabytes to whoever reads it
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    registry = open_registry(place)
    started = time.monotonic()
    assert registry.version(name, "1").card.signature == DOUBLE
    assert time.monotonic() - started < 10
    assert list(scratch.iterdir()) == []
    assert not models_dir.exists()

    (place.files_of(name, "1") / "python_model.pkl").unlink()
    assert registry.version(name, "1").card.input_example is not None


def test_an_input_example_larger_than_a_mebibyte_is_left_alone(place, open_registry, name):
    place.register(name, input_example=pd.DataFrame({"x": [1.5]}))
    example = place.files_of(name, "1") / "serving_input_example.json"
    example.write_text('{"inputs": "' + "x" * 2**20 + '"}')
    assert open_registry(place).version(name, "1").card.input_example is None
    example.write_text("{not json")
    assert open_registry(place).version(name, "1").card.input_example is None


def test_a_signature_set_later_is_another_revision_of_the_same_model(place, open_registry, name):
    place.register(name)
    registry = open_registry(place)
    before = registry.version(name, "1")
    with made_global(place.uri):
        set_signature(f"models:/{before.model_uuid}", TEXT)

    after = registry.version(name, "1")
    assert (before.card.signature, after.card.signature) == (DOUBLE, TEXT)
    assert before.revision != after.revision
    assert before.model_uuid == after.model_uuid
    assert registry.version(name, "1", known=before).card is before.card


def test_a_model_deleted_and_made_again_is_another_model(place, open_registry, name):
    place.register(name)
    registry = open_registry(place)
    before = registry.version(name, "1")
    place.client.delete_registered_model(name)
    place.register(name, signature=TEXT)

    after = registry.version(name, "1", known=before)
    assert before.key[:2] == after.key[:2]
    assert before.model_uuid != after.model_uuid
    assert after.card.signature == TEXT


def test_one_process_asks_two_registries_that_have_the_same_name(server, database, open_registry, name):
    server.register(name)
    database.register(name, signature=TEXT)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)

    of_server, of_database = open_registry(server), open_registry(database)
    assert of_server.version(name, "1").card.signature == DOUBLE
    assert of_database.version(name, "1").card.signature == TEXT
    for registry in (of_server, of_database):
        version = registry.version(name, "1")
        assert version.model_uuid in (registry.download(version).directory / "MLmodel").read_text()
        registry.summaries(name)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)) == before


def test_a_version_copied_from_another_model_has_its_files(place, open_registry, name):
    place.register(name)
    with made_global(place.uri):
        place.client.copy_model_version(f"models:/{name}/1", f"{name}-copy")
    registry = open_registry(place)
    original, copy = registry.version(name, "1"), registry.version(f"{name}-copy", "1")
    assert (copy.model_uuid, copy.source) == (original.model_uuid, original.source)
    assert registry.download(copy).directory == registry.download(original).directory


def test_sources_written_as_model_addresses_are_looked_up_in_the_registry_they_are_from(database, open_registry, name):
    database.register(name)
    registry = open_registry(database)
    location = registry.version(name, "1").source
    model_uuid = registry.version(name, "1").model_uuid
    for source in (f"models:/{model_uuid}", f"models:/{name}/1"):
        number = str(database.client.create_model_version(name, location).version)
        database.write(
            "UPDATE model_versions SET source=?, storage_location=NULL WHERE name=? AND version=?", source, name, number
        )
        assert registry.version(name, number).source == location


def test_a_version_whose_logged_model_is_gone_has_no_artifacts(database, open_registry, name):
    database.register(name)
    database.write(
        "UPDATE model_versions SET source = ?, storage_location = NULL WHERE name = ?", "models:/m-gone", name
    )
    with pytest.raises(LoadFailed, match="its artifacts are missing"):
        open_registry(database).version(name, "1")


# --- aliases, latest, lists ----------------------------------------------------------------------------------------


@pytest.fixture
def three(place, name) -> str:
    """A model of three versions: 1 is the champion, 2 is plain, 3 is not ready and has an alias."""
    for _ in range(3):
        place.register(name)
    place.client.set_registered_model_alias(name, "champion", "1")
    place.client.set_registered_model_alias(name, "7", "1")
    place.client.set_registered_model_alias(name, "next", "3")
    place.set_status(name, "3", "PENDING_REGISTRATION")
    return name


def test_versions_are_found_by_alias_and_listed_and_refused(place, open_registry, three):
    registry = open_registry(place)

    # aliases
    assert registry.number_of(three, Reference("alias", "champion")) == "1"
    assert registry.number_of(three, Reference("alias", "7")) == "1"
    assert registry.number_of(three, Reference("number", "99")) == "99"
    with pytest.raises(VersionNotFound) as missing:
        registry.number_of(three, Reference("alias", "nobody"))
    assert missing.value.members == {
        "requested_version": "@nobody",
        "available": ["@7", "@champion", "2", "1"],
    }

    # the list: newest first, with the aliases that MLflow's own search leaves out
    listed = registry.summaries(three)
    assert [(each.number, each.aliases, each.ready) for each in listed] == [
        ("3", ("next",), False),
        ("2", (), True),
        ("1", ("7", "champion"), True),
    ]

    # the latest is ready and allowed
    assert registry.latest(three) == "2"
    assert registry.number_of(three, Reference("latest", "latest"), policy=VersionPolicy("aliased")) == "1"
    with pytest.raises(VersionNotFound):
        registry.latest(three, VersionPolicy.of([3]).allows)

    # what does not exist, or not yet
    for number in ("0", "3", "99", "2147483648", "9999999999"):
        with pytest.raises(VersionNotFound) as missing:
            registry.version(three, number, policy=VersionPolicy.of([1]))
        assert missing.value.members["available"] == ["@7", "@champion", "1"]

    # what the policy does not allow, unless it is the default
    only = VersionPolicy.of([9])
    with pytest.raises(VersionForbidden):
        registry.version(three, "2", policy=only)
    assert registry.version(three, "2", policy=only, default=registry.version(three, "2")).number == "2"
    with pytest.raises(VersionForbidden):
        registry.version(three, "2", policy=only, default=registry.version(three, "1"))


def test_a_model_that_does_not_exist_is_named(place, open_registry):
    registry = open_registry(place)
    for ask in (
        lambda model: registry.version(model, "1"),
        lambda model: registry.number_of(model, Reference("alias", "champion")),
        registry.latest,
        registry.summaries,
    ):
        for model in ("nothing", "not/a/name", "'", "a b"):
            with pytest.raises(ModelNotFound, match="no registered model"):
                ask(model)


def test_names_with_quotes_are_searched_for(database, open_registry):
    database.register("it's")
    database.register('a "b"')
    registry = open_registry(database)
    for name in ("it's", 'a "b"'):
        assert [each.number for each in registry.summaries(name)] == ["1"]
    database.client.create_registered_model('it\'s "b"')
    with pytest.raises(ConfigurationError, match="both kinds of quotes"):
        registry.summaries('it\'s "b"')


def test_lists_go_through_all_pages(database, open_registry, name, monkeypatch):
    monkeypatch.setattr("registry_serve.registry.pages.PAGE", 2)
    location = None
    for _ in range(5):
        if location is None:
            database.register(name)
            location = str(database.files_of(name, "1"))
        else:
            database.client.create_model_version(name, location)
    for suffix in "abc":
        database.client.create_registered_model(f"{name}-{suffix}", tags={"registry_serve.default": "yes"})
    database.client.set_registered_model_alias(name, "champion", "4")
    registry = open_registry(database)

    assert [each.number for each in registry.summaries(name)] == ["5", "4", "3", "2", "1"]
    models = {model.name: model for model in registry.models() if model.name.startswith(name)}
    assert list(models) == [name, *(f"{name}-{suffix}" for suffix in "abc")]
    assert models[name].aliases == {"champion": "4"}
    assert models[f"{name}-a"].tags == {"registry_serve.default": "yes"}


# --- trouble -------------------------------------------------------------------------------------------------------


def test_missing_artifacts_are_no_missing_version(place, open_registry, name):
    place.register(name)
    registry = open_registry(place)
    version = registry.version(name, "1")
    files = place.files_of(name, "1")
    (files / "MLmodel").rename(files / "elsewhere")
    for ask in (lambda: registry.version(name, "1"), lambda: registry.download(version)):
        with pytest.raises(LoadFailed, match="its artifacts are missing from the artifact store"):
            ask()
    files.rename(files.with_name("gone"))
    for ask in (lambda: registry.version(name, "1"), lambda: registry.download(version)):
        with pytest.raises(LoadFailed, match="its artifacts are missing from the artifact store"):
            ask()
    with pytest.raises(VersionForbidden):
        registry.version(name, "1", policy=VersionPolicy("aliased"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "not valid YAML"),
        (b"a: [", "not valid YAML"),
        (b"- 1", "names no flavors"),
        (b'flavors: {}\nmlflow_version: 99.0.0\nsignature: {inputs: \'[{"type": "tomorrow"}]\'}', "MLflow 99.0.0"),
    ],
)
def test_a_card_that_cannot_be_read_says_why(database, open_registry, name, content, reason):
    model = name.partition("-")[0]
    if not any(each.name == model for each in open_registry(database).models()):
        database.register(model)
    (database.files_of(model, "1") / "MLmodel").write_bytes(content)
    with pytest.raises(LoadFailed, match=reason):
        open_registry(database).version(model, "1")


def not_found() -> requests.HTTPError:
    answer = requests.Response()
    answer.status_code = 404
    return requests.HTTPError(response=answer)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (FileNotFoundError(), "missing from the artifact store"),
        (not_found(), "missing from the artifact store"),
        (ImportError("No module named 'boto3'", name="boto3"), r"not installed here \(boto3\)"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/path"), "the disk for model files on this server"),
        (MlflowException("a.bin: [Errno 28] No space left on device"), "the disk for model files on this server"),
        (PermissionError(errno.EACCES, "denied", "/a/path"), "cannot be read by this server"),
        (requests.ConnectionError("http://inside"), None),
        (ConnectionResetError(), None),
        (TimeoutError(), None),
        (RuntimeError("the store's own"), None),
    ],
)
def test_trouble_with_artifacts_is_told_apart_from_a_store_that_does_not_answer(raised, reason):
    expected = RegistryUnavailable if reason is None else LoadFailed
    with (
        pytest.raises(expected, match=reason or "the artifacts of version 1 of 'm'") as error,
        reading_artifacts("m", "1"),
    ):
        raise raised
    assert "inside" not in str(error.value)
    assert "/a/path" not in str(error.value)


def test_whatever_a_registry_raises_is_unavailable():
    with pytest.raises(RegistryUnavailable, match="a thing"), asking("a thing"):
        raise ValueError("a client library's own")


def test_a_registry_that_refuses_hangs_or_is_none_is_unavailable_within_the_timeout(server, open_registry, name):
    server.register(name)
    registry = open_registry(server)
    version = registry.version(name, "1")
    asks = (
        lambda registry: registry.version(name, "1"),
        lambda registry: registry.number_of(name, Reference("alias", "x")),
        lambda registry: registry.models(),
        lambda registry: registry.download(version),
    )

    def ask(registry, question):
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable) as unavailable:
            question(registry)
        assert "127.0.0.1" not in str(unavailable.value)
        assert time.monotonic() - started < 5

    for question in asks[:3]:
        ask(open_registry(f"http://127.0.0.1:{free_port()}"), question)
    # as it is, only the first of the two tries is waited for: four seconds each would make this test long
    with server.hanging(), impatient(1):
        ask(registry, asks[0])
        ask(registry, asks[3])
    assert registry.version(name, "1") == version


def test_what_is_no_mlflow_server_is_no_missing_model(open_registry):
    page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope"
    with answering(page) as uri, pytest.raises(RegistryUnavailable):
        open_registry(uri).version("model", "1")
    with answering(
        b"HTTP/1.1 429 Too Many\r\nRetry-After: 60\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ) as uri:
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            open_registry(uri).version("model", "1")
        assert time.monotonic() - started < 5
    denied = b'{"error_code": "PERMISSION_DENIED", "message": "no"}'
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(denied)
    with answering(head + denied) as uri, pytest.raises(RegistryUnavailable, match="refuses this server's credentials"):
        open_registry(uri).version("model", "1")


def test_an_address_that_mlflow_does_not_understand_is_a_mistake_of_the_deployment(open_registry):
    with pytest.raises(ConfigurationError, match="MLflow"):
        open_registry("gopher://nowhere").version("model", "1")


# --- downloads -----------------------------------------------------------------------------------------------------


def test_a_served_model_is_downloaded_once_and_loads(server, open_registry, name, models_dir, tmp_path):
    (tmp_path / "words.txt").write_text("one")
    server.register(name, artifacts={"words": str(tmp_path / "words.txt")})
    registry = open_registry(server)
    version = registry.version(name, "1")

    directory = registry.download(version).directory
    assert directory.parent == models_dir
    assert (directory / "artifacts" / "words.txt").read_text() == "one"
    frame = pd.DataFrame({"x": [1.0]})
    assert mlflow.pyfunc.load_model(str(directory)).predict(frame).equals(frame)
    with impatient(1), server.hanging():
        assert registry.download(version).directory == directory


def test_artifacts_on_this_machine_are_used_where_they_are(database, open_registry, name, models_dir):
    database.register(name)
    registry = open_registry(database)
    directory = registry.download(registry.version(name, "1")).directory
    assert directory == database.files_of(name, "1")
    assert not models_dir.exists()


def test_a_download_that_breaks_off_leaves_nothing_and_works_the_next_time(server, open_registry, name, models_dir):
    server.register(name)
    registry = open_registry(server)
    version = registry.version(name, "1")
    weights = server.files_of(name, "1") / "python_model.pkl"
    weights.rename(weights.with_name("kept"))
    weights.symlink_to("/proc/self/mem")  # listed as a file, but reading it is an error of the disk
    with pytest.raises(RegistryUnavailable):
        registry.download(version)
    assert list((models_dir / ".partial").iterdir()) == []
    assert [path for path in models_dir.iterdir() if not path.name.startswith(".")] == []

    weights.unlink()
    weights.with_name("kept").rename(weights)
    assert (registry.download(version).directory / "python_model.pkl").stat().st_size > 0


# --- patience ------------------------------------------------------------------------------------------------------

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def impatient(timeout_s: float):
    return _Impatient(timeout_s)


class _Impatient:
    """A shorter time-out than the one the tests already run under."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    def __enter__(self) -> None:
        self.before = os.environ[TIMEOUT]
        os.environ[TIMEOUT] = str(self.timeout_s)

    def __exit__(self, *_: object) -> None:
        os.environ[TIMEOUT] = self.before


def test_impatience_ends_with_its_block_and_leaves_the_users_own_settings(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    before = dict(os.environ)
    with impatient_http(RegistryAddress("http://x", timeout_s=10)):
        assert os.environ[TIMEOUT] == "5"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
        with patient_downloads(), patient_downloads():
            assert int(os.environ[TIMEOUT]) > 100
        assert os.environ[TIMEOUT] == "5"
    assert dict(os.environ) == before
    with patient_downloads():
        assert dict(os.environ) == before

    monkeypatch.setenv(TIMEOUT, "77")
    with impatient_http(RegistryAddress("http://x")), patient_downloads():
        assert os.environ[TIMEOUT] == "77"


def test_a_replica_becomes_impatient_for_good():
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MLFLOW_"):
                patch.delenv(name)
        patch.setattr("registry_serve.registry.patience._short_timeout", None)
        names = make_http_impatient(RegistryAddress("http://x", timeout_s=0.5))
        try:
            assert os.environ[TIMEOUT] == "1"
            assert make_http_impatient(RegistryAddress("http://x", timeout_s=9)) == []
        finally:
            for name in names:
                del os.environ[name]


class answering:  # noqa: N801 - reads as a block
    """A server that gives one answer to every request."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def __enter__(self) -> str:
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self.answer)

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
