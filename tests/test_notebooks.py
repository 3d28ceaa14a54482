"""The notebooks run as they are, and answer what is stored in them.

After a wanted change, ``UPDATE_NOTEBOOKS=1 pytest tests/test_notebooks.py`` stores the new outputs; read the diff.
"""

import functools
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from ray import serve

from tests.load import eventually
from tests.mlflow_server import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

NOTEBOOKS = sorted(Path(__file__).parents[1].joinpath("notebooks").glob("*.ipynb"))

#: What the notebooks serve, and take off again.
APPLICATIONS = {"translator", "question_answerer", "travel_translator", "instruct_llm", "four-sentences-mii-deployment"}

#: What may differ from run to run, and what stands for it in the comparison. Cells tagged ``varies`` are not compared.
DIFFERS = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "REQUEST-ID",
    r"(?<='score': )0\.\d+": "SCORE",
}


def read(name):
    return nbformat.read(next(path for path in NOTEBOOKS if path.stem == name), as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell):
    """All text that a cell gave out, whether printed or as its result."""
    return "".join(output.get("text") or output["data"]["text/plain"] for output in cell.outputs)


def comparable(cell):
    text = "" if "varies" in cell.metadata.get("tags", []) else said(cell)
    for pattern, name in DIFFERS.items():
        text = re.sub(pattern, name, text)
    return text


def cell_with(notebook, code):
    """What the one cell with this code in it gave out."""
    (found,) = (cell for cell in code_cells(notebook) if code in cell.source)
    return said(found)


@pytest.fixture(scope="session")
def demo_folder(request):
    """Where the demo is: ``TEST_DEMO_FOLDER``, to save its half minute while developing, or the one of this run."""
    folder = os.environ.get("TEST_DEMO_FOLDER")
    return Path(folder) if folder else request.getfixturevalue("demo_registry").folder


@pytest.fixture(scope="module")
def executed(cluster, demo_folder, tmp_path_factory):
    """A function that runs a notebook on the tests' cluster, once, and gives it with its new outputs."""
    environment = os.environ | {
        "RAY_ADDRESS": cluster.gcs,
        "SERVE_ADDRESS": cluster.address,
        "DEMO_FOLDER": str(demo_folder),
        "REGISTRY_SERVE_STATE": str(tmp_path_factory.mktemp("state")),
        "PORT": str(free_port()),
    }
    earlier = set(serve.status().applications)

    @functools.cache
    def execute(name):
        notebook = read(name)
        metadata = notebook.metadata.copy()
        folder = {"metadata": {"path": NOTEBOOKS[0].parent}}
        client = NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False, resources=folder)
        client.execute(env=environment)
        notebook.metadata = metadata
        if os.environ.get("UPDATE_NOTEBOOKS"):
            nbformat.write(notebook, NOTEBOOKS[0].parent / f"{name}.ipynb")
        return notebook

    yield execute
    for left_behind in set(serve.status().applications) - earlier:
        serve.delete(left_behind)


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_a_notebook_answers_what_is_stored_in_it(executed, name):
    now = executed(name)
    for stored, ran in zip(code_cells(read(name)), code_cells(now), strict=True):
        assert comparable(ran) == comparable(stored), stored.source
    # A persistent deployment is taken off when its front has ended; Serve's own list says so a moment later.
    eventually(lambda: not APPLICATIONS & serve.status().applications.keys(), within_s=10)


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_what_is_stored_is_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    for cell in cells:
        assert {output.get("name") for output in cell.outputs} <= {"stdout", None}, "noise on standard error"
        assert not re.search(r"/(tmp|home|work|Users|var)/|:\d{4,5}\b|0x[0-9a-f]{6,}|\x1b|█", said(cell)), said(cell)


def test_every_version_is_reached_on_one_endpoint(executed):
    notebook = executed("signature_aware_serving")
    sentence = 'show(ask("/translate/serve", {"prompt": "The weather is lovely today"}'
    assert cell_with(notebook, f"{sentence}, version=2))") == (
        "200 from version 2\n[{'translation_text': \"Il fait beau aujourd'hui.\"}]\n"
    )
    by_default = cell_with(notebook, "def states()")
    assert "200 from version 1\n[{'translation_text': 'Das Wetter ist heute schön.'}]" in by_default
    assert "{'2': ('ready', 'compatible'), '1': ('ready', 'compatible')}" in by_default
    assert cell_with(notebook, 'version="@french"').count("200 from version 2") == 2
    later = cell_with(notebook, "time.sleep")
    assert "'4': ('ready', 'compatible')" in later
    assert "'2': ('absent', 'compatible')" in later
    assert "'1': ('ready', 'compatible')" in later


def test_what_does_not_fit_is_refused_with_its_reasons(executed):
    notebook = executed("signature_aware_serving")
    conflict = cell_with(notebook, "version=3))")
    assert conflict.startswith("409 Conflict")
    assert "\"input 'prompt' is missing\"" in conflict
    assert "\"input 'text_to_translate' (string, required) is new\"" in conflict
    assert "'requested_version': '99'" in cell_with(notebook, "version=99))")
    faults = cell_with(notebook, '{"promt": "Good night."}')
    assert "{'location': [1, 'promt'], 'message': \"is not in the model's signature\"}" in faults
    assert "{'location': [2, 'prompt'], 'message': 'must be a string'}" in faults


def test_lists_optional_inputs_and_params_are_served(executed):
    notebook = executed("signature_aware_serving")
    lists = cell_with(notebook, "It is raining.")
    assert re.findall(r"'(?:translation_text|answer)': '(.*?)'", lists) == [
        "Guten Morgen.",
        "Es regnet.",
        "Ich habe Hunger.",
        "Germany",
        "Hans",
    ]
    assert re.findall(r"'translation_text': '(.*?)'", cell_with(notebook, '"language": None}')) == [
        "Où est la gare ?",
        "Wo ist der Bahnhof?",
        "Wo ist der Bahnhof?",
    ]
    assert "'Wo ist'" in cell_with(notebook, '"params": {"max_new_tokens": 2}')
    refused = cell_with(notebook, "temprature")
    assert "['params', 'max_new_tokens']" in refused
    assert "['params', 'temprature']" in refused


def test_each_deployment_is_named_after_its_model(executed):
    assert "'translator': ['translation_model']" in cell_with(
        executed("signature_aware_serving"), "applications[name].deployments"
    )


ANSWER = (
    "Machine learning is the practice of letting a program find patterns in data, "
    "so that it can make predictions about data it has not seen."
)


def test_params_need_a_schema(executed):
    notebook = executed("llm_as_pyfunc")
    in_python = [
        said(cell) for cell in code_cells(notebook) if 'predict(question, params={"max_tokens": 5})' in cell.source
    ]
    assert in_python == [f"{ANSWER}\n", "Machine learning is the practice\n"]
    assert "422 [{'location': ['params', 'max_tokens']" in cell_with(notebook, "def ask(")
    assert cell_with(notebook, "differences").splitlines() == [
        "409 Conflict",
        "param 'max_tokens' (long) is new",
        "param 'temperature' (double) is new",
    ]
    with_params = cell_with(notebook, "for settings in")
    assert f"200 None\n{ANSWER}\n" in with_params
    assert "200 {'max_tokens': 5}\nMachine learning is the practice\n" in with_params
    assert f"200 {{'temperature': 0}}\n{ANSWER}\n" in with_params


def test_all_rows_are_answered_by_a_class_that_reads_them(executed):
    notebook = executed("llm_as_pyfunc")
    assert cell_with(notebook, "two_questions = ").startswith("{'candidates': ['MLflow is")
    assert re.findall(r"'candidates': '(.{10})", cell_with(notebook, "versions/3/serve")) == [
        "MLflow is ",
        "Ray Serve ",
    ]


def test_a_deployment_goes_on_without_the_process_that_served_it_and_without_one_of_its_replicas(executed):
    notebook = executed("persistent_deployments")
    assert cell_with(notebook, "subprocess.run").strip() == "[ what keeps replicas alive.]"
    assert cell_with(notebook, "for _ in range(6)") == "[3, 3]"
    alone = "{'[ a copy of a model that answers on its own.]'}"
    assert cell_with(notebook, "SIGKILL").splitlines() == [alone, "[True, True]"]
    assert cell_with(notebook, "terminate_server").strip() == "It is not there any more."
