"""Loads that ended their process, with real processes that die."""

import os
import subprocess
import sys

import pytest

from registry_serve.errors import LoadFailed
from registry_serve.models.attempts import Attempts
from registry_serve.models.loading import Loader
from registry_serve.policies import LoadPolicy, RegistryAddress
from registry_serve.registry import Registry, VersionKey

KEY = VersionKey("toy", "1", "uuid", "revision")

DIES = """
import os, sys
from pathlib import Path
from registry_serve.models.attempts import Attempts
from registry_serve.registry import VersionKey
with Attempts(Path(sys.argv[1])).noted(VersionKey(*sys.argv[2:])):
    os._exit(1)
"""


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path / "loading")


def die(attempts, key=KEY):
    values = (key.model, key.number, key.model_uuid, key.revision)
    assert subprocess.run([sys.executable, "-c", DIES, attempts.folder, *values], check=False).returncode == 1


def notes(attempts):
    return len(list(attempts.folder.iterdir()))


def test_a_load_that_ends_its_process_twice_is_deadly_and_others_are_not(attempts):
    die(attempts)
    assert not attempts.deadly(KEY)
    die(attempts)
    assert attempts.deadly(KEY)
    assert not attempts.deadly(VersionKey("toy", "2", "uuid", "revision"))


def test_loads_that_are_under_way_or_fail_are_no_deaths(attempts):
    with attempts.noted(KEY), attempts.noted(KEY), attempts.noted(KEY):
        assert (attempts.deadly(KEY), notes(attempts)) == (False, 3)
    for _ in range(3):
        with pytest.raises(RuntimeError), attempts.noted(KEY):
            raise RuntimeError
    assert (attempts.deadly(KEY), notes(attempts)) == (False, 0)


def test_a_load_goes_on_where_it_cannot_be_noted(tmp_path, caplog):
    (tmp_path / "file").touch()
    attempts = Attempts(tmp_path / "file" / "loading")
    done = []
    with attempts.noted(KEY):
        done.append(attempts.deadly(KEY))
    assert done == [False]
    assert "cannot be noted" in caplog.text


def test_the_folder_of_model_files_is_the_owners_alone(tmp_path):
    with Attempts(tmp_path / "models" / "loading").noted(KEY):
        assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("models", "models/loading")] == [0o700, 0o700]


def test_a_load_that_succeeds_clears_its_version(attempts):
    die(attempts)
    with attempts.noted(KEY):
        pass
    assert notes(attempts) == 0


def test_a_deadly_version_is_isolated_or_refused(shelf, attempts):
    registry = Registry(RegistryAddress(shelf.uri))
    version = registry.version("toy", "1")
    files = registry.download(version)
    for _ in range(2):
        die(attempts, version.key)
    with pytest.raises(LoadFailed, match="ended the server's process several times"):
        Loader(LoadPolicy(isolation=False), None, attempts).load(version, files.directory)
    isolated = object()
    loader = Loader(LoadPolicy(), lambda *_: isolated, attempts)
    assert loader.load(version, files.directory) is isolated
    assert loader.describe(version.key)["isolated"]
    assert notes(attempts) == 0
    loader.load(version, files.directory).close()
    assert not loader.describe(version.key)["isolated"]
    files.release()


def test_deaths_are_forgotten_after_a_while_and_the_default_is_never_suspected(shelf, attempts):
    registry = Registry(RegistryAddress(shelf.uri))
    version = registry.version("toy", "1")
    files = registry.download(version)
    for _ in range(2):
        die(attempts, version.key)
    Loader(LoadPolicy(), None, attempts, version.key).load(version, files.directory).close()
    for _ in range(2):
        die(attempts, version.key)
    for note in attempts.folder.iterdir():
        os.utime(note, (0, 0))
    assert not attempts.deadly(version.key)
    assert notes(attempts) == 0
    files.release()
