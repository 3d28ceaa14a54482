"""Requirements of versions, held against what is installed: what is told, refused, and installed."""

import importlib.metadata
import logging
import os
import platform
import sys

import cloudpickle
import mlflow
import pandas as pd
import pytest

from registry_serve import EnvironmentConflict, LoadFailed, LoadPolicy
from registry_serve.models.attempts import Attempts
from registry_serve.models.environment import compared
from registry_serve.models.isolated import load_isolated, pip_environment
from registry_serve.models.loading import Loader
from registry_serve.policies import RegistryAddress
from registry_serve.registry import Registry

cloudpickle.register_pickle_by_value(sys.modules[__name__])

TEXT = mlflow.models.infer_signature(pd.DataFrame({"prompt": ["a"]}))
SIX = importlib.metadata.version("six")
OTHER_SIX = "1.16.0" if SIX != "1.16.0" else "1.17.0"


class Imports(mlflow.pyfunc.PythonModel):
    """Answers with the version of ``six`` that it imported, and its process."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        import six

        return [six.__version__, os.getpid()]


def write(folder, requirements, python=None):
    version = platform.python_version() if python is None else python
    (folder / "MLmodel").write_text(f"flavors:\n  python_function:\n    python_version: {version}\n")
    (folder / "requirements.txt").write_text(requirements)
    return folder


@pytest.mark.parametrize(
    ("requirements", "differences"),
    [
        ("", []),
        (f"six=={SIX}", []),
        ("six", []),
        (f"six=={OTHER_SIX}", [(f"six=={OTHER_SIX}", SIX)]),
        (f"# six==0.1\nsix=={OTHER_SIX}  # why\n\n", [(f"six=={OTHER_SIX}", SIX)]),
        (f"six=={OTHER_SIX} \\\n    --hash=sha256:00", [(f"six=={OTHER_SIX}", SIX)]),
        ("Six>=1,<99", []),
        (f"six=={SIX}+cpu", []),
        ("no-such-package==1", [("no-such-package==1", None)]),
        ('no-such-package==1; python_version < "3"', []),
        ('no-such-package==1; python_version >= "3"', [("no-such-package==1", None)]),
        ("importlib_metadata[no-such-extra]>0", []),
        (f"mlflow=={mlflow.__version__}", []),
        ("mlflow==3.0", []),
        ("mlflow-skinny~=3.1", []),
        ("mlflow==99.1", [("mlflow==99.1", mlflow.__version__)]),
    ],
)
def test_differences_are_found_and_nothing_else(tmp_path, requirements, differences):
    found = compared(write(tmp_path, requirements))
    assert [(each.requirement, each.installed) for each in found.differences] == differences
    assert found.not_checked == ()


def test_what_an_extra_asks_for_is_compared_too(tmp_path):
    missing = compared(write(tmp_path, "pandas[all]"))
    assert {"xlrd", "openpyxl"} & {each.requirement.split(">")[0] for each in missing.differences}


@pytest.mark.parametrize(("python", "differs"), [("3.1.4", True), (platform.python_version(), False), ("", False)])
def test_the_minor_version_of_python_is_compared(tmp_path, python, differs):
    found = compared(write(tmp_path, "", python))
    installed = [(each.requirement, each.installed) for each in found.differences]
    assert installed == ([("python==3.1.*", platform.python_version())] if differs else [])


def test_the_same_minor_version_of_python_is_no_difference(tmp_path):
    minor = ".".join(platform.python_version_tuple()[:2])
    assert compared(write(tmp_path, "", f"{minor}.999")).differences == ()


def test_lines_that_name_no_version_are_not_checked_and_keep_their_secrets(tmp_path):
    lines = [
        "-r more.txt",
        "--extra-index-url https://user:secret@host/simple",
        "git+https://user:secret@host.org/x/y.git@main",
        "six @ https://user:secret@host.org/six.whl",
        "wheels/own-1.0-py3-none-any.whl",
    ]
    found = compared(write(tmp_path, "\n".join(lines)))
    assert found.differences == ()
    assert found.not_checked == (
        "-r",
        "--extra-index-url",
        "git+https://host.org/...",
        "six @ https://host.org/...",
        "own-1.0-py3-none-any.whl",
    )


def test_pip_is_given_all_requirements_but_mlflow_and_those_of_the_server(tmp_path):
    (tmp_path / "own.whl").touch()
    lines = ["mlflow==3.1", "torch==2.13.0+cpu", "-c constraints.txt", "own.whl", "six"]
    given = compared(write(tmp_path, "\n".join(lines))).requirements
    assert given[:4] == ("torch==2.13.0", f"-c {tmp_path}/constraints.txt", f"{tmp_path}/own.whl", "six")
    assert any(each.startswith("ray[serve]") for each in given[4:])
    assert not any("extra ==" in each for each in given)


def test_a_model_without_requirements_has_no_differences(tmp_path):
    write(tmp_path, "")
    (tmp_path / "requirements.txt").unlink()
    assert compared(tmp_path).differences == ()


def test_a_versions_packages_replace_those_of_the_deployments_own_runtime_environment():
    inherited = {"packages": ["Six==1.17.0", "toolz", "-i x"], "pip_check": False}
    assert pip_environment(["six==1.16.0"], inherited) == {
        "packages": ["toolz", "-i x", "six==1.16.0"],
        "pip_check": False,
    }


# --- what is done about it -------------------------------------------------------------------------------------------


@pytest.fixture
def fetch(shelf):
    """Registers a model with these requirements; gives its version and directory."""
    registry = Registry(RegistryAddress(shelf.uri))

    def make(*requirements):
        number = shelf.log("pinned", Imports(), signature=TEXT, pip_requirements=list(requirements))
        version = registry.version("pinned", number)
        return version, registry.download(version).directory

    return make


def predict(model):
    return model.predict(pd.DataFrame({"prompt": pd.Series(["a"], dtype=object)}), None)


def no_isolation(*arguments):
    raise AssertionError


def test_a_difference_is_told_once_and_the_version_is_loaded(fetch, caplog, tmp_path):
    loader = Loader(LoadPolicy(), no_isolation, Attempts(tmp_path / "loading"))
    version, directory = fetch(f"six=={OTHER_SIX}", "-i https://pypi.org/simple")
    assert loader.describe(version.key) is None
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert predict(loader.load(version, directory)) == [SIX, os.getpid()]
    assert caplog.text.count(f"asks for other packages: six=={OTHER_SIX} ({SIX} is installed)") == 1
    assert loader.describe(version.key) == {
        "policy": "warn",
        "isolated": False,
        "differences": [{"requirement": f"six=={OTHER_SIX}", "installed": SIX}],
        "not_checked": ["-i"],
    }


def test_a_difference_is_refused_where_that_is_wanted(fetch, tmp_path):
    loader = Loader(LoadPolicy("refuse"), no_isolation, Attempts(tmp_path / "loading"))
    version, directory = fetch(f"six=={OTHER_SIX}", "no-such-package==1")
    with pytest.raises(EnvironmentConflict, match=f"six=={OTHER_SIX} \\(installed: {SIX}\\)") as caught:
        loader.load(version, directory)
    assert [each["installed"] for each in caught.value.members["differences"]] == [SIX, None]
    assert loader.describe(version.key)["isolated"] is None
    assert predict(loader.load(*fetch(f"six=={SIX}"))) == [SIX, os.getpid()]


def test_another_python_cannot_be_installed(fetch, tmp_path):
    version, directory = fetch("six")
    model = directory / "MLmodel"
    model.write_text(model.read_text().replace(f"python_version: {platform.python_version()}", "python_version: 3.9.1"))
    with pytest.raises(EnvironmentConflict, match=r"python==3\.9"):
        Loader(LoadPolicy("isolate"), no_isolation, Attempts(tmp_path / "loading")).load(version, directory)


def test_a_version_whose_requirements_are_met_needs_no_process_of_its_own(fetch, tmp_path):
    loader = Loader(LoadPolicy("isolate"), no_isolation, Attempts(tmp_path / "loading"))
    assert predict(loader.load(*fetch("six"))) == [SIX, os.getpid()]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_version_gets_the_packages_it_was_logged_with(cluster, fetch, tmp_path):
    loader = Loader(LoadPolicy("isolate"), load_isolated, Attempts(tmp_path / "loading"))
    version, directory = fetch(f"six=={OTHER_SIX}")
    model = loader.load(version, directory)
    assert predict(model) == [OTHER_SIX, model.pid]
    assert loader.describe(version.key)["isolated"] is True
    model.close()


@pytest.mark.cluster
@pytest.mark.slow
def test_packages_that_do_not_exist_are_a_failed_load(cluster, fetch, tmp_path):
    with pytest.raises(LoadFailed, match="pip cannot install its requirements"):
        Loader(LoadPolicy("isolate"), load_isolated, Attempts(tmp_path / "loading")).load(*fetch("six==0.0.99"))
