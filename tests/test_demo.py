"""The demo registry, really built: small models, trained in a process of their own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import Model

from registry_serve.demo import DemoRegistry, build
from registry_serve.demo.introductions import PASSAGE
from registry_serve.demo.phrase_book import PHRASES
from registry_serve.demo.registry import is_complete
from registry_serve.errors import ConfigurationError
from tests.demo_builds import History

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def client(demo_registry: DemoRegistry) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(demo_registry.tracking_uri, demo_registry.tracking_uri)


Load = Callable[[str, str], Any]


@pytest.fixture(scope="session")
def load(client: mlflow.MlflowClient) -> Load:
    loaded: dict[tuple[str, str], Any] = {}

    def load(model: str, version: str) -> Any:
        if (model, version) not in loaded:
            source = client.get_model_version_download_uri(model, version)
            loaded[model, version] = mlflow.pyfunc.load_model(source)
        return loaded[model, version]

    return load


def translate(model: Any, sentences: list[str], column: str = "prompt") -> list[str]:
    return [row["translation_text"] for row in model.predict(pd.DataFrame({column: sentences}, dtype=object))]


def instruct(model: Any, prompts: list[str], **params: Any) -> str:
    answer = model.predict(pd.DataFrame({"prompt": prompts}), params=params or None)
    assert list(answer) == ["candidates"]
    (text,) = answer["candidates"]
    return text


def test_an_interrupted_build_is_built_again(demo_history: History) -> None:
    assert demo_history.complete_after_interruption is False
    assert is_complete(demo_history.registries[0].folder, from_hub=False)


def test_two_builders_at_once_make_one_registry(demo_history: History, client: mlflow.MlflowClient) -> None:
    assert demo_history.registries[0] == demo_history.registries[1]
    assert len(client.search_model_versions()) == 5
    assert demo_history.stages["Waiting for another build"] == [0.0, 1.0]
    assert demo_history.stages["Registering the models"].count(0.0) == 1


def test_a_build_reports_its_stages(demo_history: History) -> None:
    for stage in ("Training the translator", "Training the question answerer", "Training the language model"):
        assert demo_history.stages[stage] == sorted(demo_history.stages[stage])
        assert demo_history.stages[stage][-1] == 1.0


def test_a_build_leaves_the_addresses_of_mlflow_alone(demo_history: History) -> None:
    assert demo_history.after == demo_history.before


def test_a_second_build_is_instant(demo_registry: DemoRegistry) -> None:
    marker = (demo_registry.folder / "demo.json").stat().st_mtime_ns
    started = time.perf_counter()
    assert build(demo_registry.folder) == demo_registry
    assert time.perf_counter() - started < 1
    assert (demo_registry.folder / "demo.json").stat().st_mtime_ns == marker


def test_nothing_is_left_over(demo_registry: DemoRegistry) -> None:
    assert {path.name for path in demo_registry.folder.iterdir()} == {
        "artifacts",
        "demo.json",
        "demo.lock",
        "mlflow.db",
    }


def test_a_registry_that_was_moved_is_not_complete(demo_registry: DemoRegistry, tmp_path: Path) -> None:
    shutil.copytree(demo_registry.folder, tmp_path / "moved")
    assert not is_complete(tmp_path / "moved", from_hub=False)


def test_another_recipe_is_not_complete(demo_registry: DemoRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_complete(demo_registry.folder, from_hub=True)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0")
    assert not is_complete(demo_registry.folder, from_hub=False)


@pytest.mark.parametrize("name", ["mlflow.db", "artifacts"])
def test_a_folder_with_another_registry_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigurationError, match="that is not the demo's"):
        build(tmp_path)
    assert (tmp_path / name).exists()


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be built in"):
        build(tmp_path / "file")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(ConfigurationError, match=r"need torch: pip install 'registry-serve\[transformers\]'"):
        build(tmp_path)


def test_a_failure_of_the_builder_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho a broken installation >&2\nexit 1\n")
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(RuntimeError, match=r"exit status 1\)\.\na broken installation"):
        build(tmp_path / "demo")


def test_an_unreachable_hub_costs_nothing(
    demo_registry: DemoRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="google-t5/t5-base cannot be downloaded"):
        build(demo_registry.folder, from_hub=True)
    assert is_complete(demo_registry.folder, from_hub=False)


def test_the_registry_holds_what_it_says(demo_registry: DemoRegistry, client: mlflow.MlflowClient) -> None:
    found: dict[str, tuple[str, ...]] = {}
    for version in client.search_model_versions(order_by=["version_number ASC"]):
        assert version.status == "READY"
        found[version.name] = (*found.get(version.name, ()), str(version.version))
    assert found == dict(demo_registry.versions)


def test_the_aliases_and_the_tag_are_set(client: mlflow.MlflowClient) -> None:
    model = client.get_registered_model("translation_model")
    assert {alias: str(version) for alias, version in model.aliases.items()} == {"champion": "1", "french": "2"}
    assert model.tags == {"registry_serve.default": "true"}
    for other in ("question_answerer", "instruct_llm"):
        assert client.get_registered_model(other).tags == {}


@pytest.mark.parametrize(
    ("model", "version", "inputs", "outputs", "params"),
    [
        ("translation_model", "1", {"prompt": "string"}, {"translation_text": "string"}, {}),
        ("translation_model", "2", {"prompt": "string"}, {"translation_text": "string"}, {}),
        ("translation_model", "3", {"text_to_translate": "string"}, {"translation_text": "string"}, {}),
        (
            "question_answerer",
            "1",
            {"question": "string"},
            {"score": "double", "start": "long", "end": "long", "answer": "string"},
            {},
        ),
        (
            "instruct_llm",
            "1",
            {"prompt": "string"},
            {"candidates": "string"},
            {"temperature": ("double", 0.1), "max_tokens": ("long", 1000)},
        ),
    ],
)
def test_the_signatures_are_explicit_and_an_example_is_stored(
    client: mlflow.MlflowClient, model: str, version: str, inputs: Any, outputs: Any, params: Any
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(client.get_model_version_download_uri(model, version)))
    stored = Model.load(str(folder))
    signature = stored.signature
    assert {column.name: column.type.name for column in signature.inputs} == inputs
    assert {column.name: column.type.name for column in signature.outputs} == outputs
    assert {param.name: (param.dtype.name, param.default) for param in signature.params or []} == params
    assert all(column.required for column in [*signature.inputs, *signature.outputs])
    assert stored.load_input_example(str(folder)).columns.tolist() == list(inputs)
    assert "dataframe_split" in json.loads((folder / "serving_input_example.json").read_text())


@pytest.mark.parametrize(("version", "language"), [("1", "de"), ("2", "fr")])
def test_the_whole_phrase_book_comes_out_right(load: Load, version: str, language: str) -> None:
    model = load("translation_model", version)
    assert translate(model, [phrase.en for phrase in PHRASES]) == [getattr(phrase, language) for phrase in PHRASES]


@pytest.mark.parametrize(
    ("version", "column", "weather", "greeting"),
    [
        ("1", "prompt", "Das Wetter ist heute schön.", "Hallo, mein Name ist Jonathan."),
        ("2", "prompt", "Il fait beau aujourd'hui.", "Bonjour, je m'appelle Jonathan."),
        ("3", "text_to_translate", "Das Wetter ist heute schön.", "Hallo, mein Name ist Jonathan."),
    ],
)
def test_a_sentence_needs_no_full_stop(load: Load, version: str, column: str, weather: str, greeting: str) -> None:
    model = load("translation_model", version)
    sentences = ["The weather is lovely today", "the weather is lovely today", "Hello my name is Jonathan."]
    assert translate(model, sentences, column) == [weather, weather, greeting]
    assert translate(model, sentences[:1], column) == [weather]


def test_a_translator_takes_any_text(load: Load) -> None:
    assert len(translate(load("translation_model", "1"), ["", "Ελληνικά 😀", "word " * 1000])) == 3
    assert translate(load("translation_model", "1"), []) == []


def test_answers_are_cut_from_the_passage(load: Load) -> None:
    questions = ["Where do you live?", "What is your name?", "what is your name"]
    answers = load("question_answerer", "1").predict(pd.DataFrame({"question": questions}))
    assert [answer["answer"] for answer in answers] == ["Germany", "Hans", "Hans"]
    for answer in answers:
        assert list(answer) == ["score", "start", "end", "answer"]
        assert PASSAGE[answer["start"] : answer["end"]] == answer["answer"]
        assert 0.7 < answer["score"] <= 1


def test_a_question_without_an_answer_gets_a_low_score(load: Load) -> None:
    (answer,) = load("question_answerer", "1").predict(pd.DataFrame({"question": ["The weather is lovely today"]}))
    assert answer["score"] < 0.1
    assert answer["answer"] == PASSAGE[answer["start"] : answer["end"]] != ""


def test_an_answerer_takes_any_text(load: Load) -> None:
    model = load("question_answerer", "1")
    assert len(model.predict(pd.DataFrame({"question": ["", "Ελληνικά 😀"]}))) == 2
    assert model.predict(pd.DataFrame({"question": []}, dtype=object)) == []


def test_an_instruction_is_answered(load: Load) -> None:
    text = instruct(load("instruct_llm", "1"), ["What is machine learning?"])
    assert text.startswith("Machine learning is the practice of letting a program find patterns in data")
    assert text.endswith("not seen.")


def test_only_the_first_instruction_is_answered(load: Load) -> None:
    text = instruct(load("instruct_llm", "1"), ["What is MLflow?", "What is Ray?"])
    assert text.startswith("MLflow is")


def test_max_tokens_ends_an_answer_early(load: Load) -> None:
    model = load("instruct_llm", "1")
    whole = instruct(model, ["What is machine learning?"], temperature=0.0)
    part = instruct(model, ["What is machine learning?"], temperature=0.0, max_tokens=5)
    assert whole.startswith(part)
    assert 0 < len(part) < len(whole) / 2


def test_a_high_temperature_makes_an_answer_random(load: Load) -> None:
    model = load("instruct_llm", "1")
    answers = {instruct(model, ["What is Ray?"], temperature=50.0, max_tokens=20) for _ in range(3)}
    assert len(answers) == 3


@pytest.mark.parametrize("params", [{"max_tokens": 0}, {"temperature": -1.0}])
def test_impossible_params_are_refused(load: Load, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1 and temperature at least 0"):
        instruct(load("instruct_llm", "1"), ["What is Ray?"], **params)


def test_a_prompt_that_fills_the_window_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="look back on 512"):
        instruct(load("instruct_llm", "1"), ["word " * 1000])


def test_predictions_print_nothing(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"prompt": ["Hello"]})
    load("translation_model", "1").predict(frame)
    load("question_answerer", "1").predict(pd.DataFrame({"question": ["Hello"]}))
    load("instruct_llm", "1").predict(frame)
    assert tuple(capfd.readouterr()) == ("", "")
