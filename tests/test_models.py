"""Loading: failures that say why, models made by running a file, modules that versions bring along."""

import sys
import textwrap
import threading
from dataclasses import replace

import mlflow
import mlflow.models.model
import pandas as pd
import pytest
from mlflow.types.llm import ChatCompletionResponse
from pydantic import BaseModel

from registry_serve.downloaders import ModelFiles
from registry_serve.errors import CodeConflict, LoadFailed
from registry_serve.models import RefusedByModel
from registry_serve.models.code_paths import claimed, is_home
from registry_serve.models.held import HeldModel
from registry_serve.models.pyfunc import load_pyfunc
from registry_serve.policies import RegistryAddress
from registry_serve.registry import Registry
from tests.toys import Broken, Shout


@pytest.fixture
def load(shelf):
    registry = Registry(RegistryAddress(shelf.uri))

    def make(name, number):
        version = registry.version(name, number)
        return load_pyfunc(version, registry.download(version).directory)

    return make


def text_frame(*values):
    return pd.DataFrame({"prompt": pd.Series(values, dtype=object)})


def test_a_version_that_cannot_be_loaded_says_what_kind_of_failure_it_was(load, shelf):
    number = shelf.log("broken", Broken(), input_example=None)
    with pytest.raises(LoadFailed, match="loading raised RuntimeError") as caught:
        load("broken", number)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def write_module(folder, name, word):
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text(f"WORD = {word!r}\n")
    return package


class Speaks(mlflow.pyfunc.PythonModel):
    """Answers with a word from a module that it brings along."""

    def __init__(self, module):
        self.module = module

    def predict(self, context, model_input: pd.DataFrame, params=None):
        import importlib

        return [importlib.import_module(f"{self.module}.words").WORD]


def log_speaker(shelf, tmp_path, name, module, word):
    package = write_module(tmp_path / word, module, word)
    return shelf.log(name, Speaks(module), code_paths=[str(package)], input_example=None)


def test_a_version_with_code_of_its_own_runs_it(load, shelf, tmp_path):
    number = log_speaker(shelf, tmp_path, "speaker", "speaks_alone", "hello")
    before = list(sys.path)
    for _ in range(3):
        assert load("speaker", number).predict(text_frame("a"), None) == ["hello"]
    assert len(sys.path) - len(before) <= 1


def test_a_second_version_with_other_code_of_the_same_name_is_refused(load, shelf, tmp_path):
    first = log_speaker(shelf, tmp_path, "clash", "speaks_clash", "one")
    second = log_speaker(shelf, tmp_path, "clash", "speaks_clash", "two")
    model = load("clash", first)
    assert model.predict(text_frame("a"), None) == ["one"]
    with pytest.raises(CodeConflict, match="speaks_clash"):
        load("clash", second)
    assert model.predict(text_frame("a"), None) == ["one"]
    assert load("clash", first).predict(text_frame("a"), None) == ["one"]


def test_a_second_version_with_the_same_code_is_welcome(load, shelf, tmp_path):
    first = log_speaker(shelf, tmp_path / "a", "same", "speaks_same", "word")
    second = log_speaker(shelf, tmp_path / "b", "same", "speaks_same", "word")
    assert [load("same", number).predict(text_frame("a"), None) for number in (first, second)] == [["word"], ["word"]]


def test_a_version_that_brings_a_module_the_server_uses_is_refused(load, shelf, tmp_path):
    number = log_speaker(shelf, tmp_path, "shadow", "yaml", "mine")
    with pytest.raises(CodeConflict, match="'yaml'"):
        load("shadow", number)


def test_a_version_that_takes_the_place_of_pythons_own_library_is_refused(load, shelf, tmp_path):
    assert "mailbox" not in sys.modules
    number = log_speaker(shelf, tmp_path, "stdlib", "mailbox", "mine")
    with pytest.raises(CodeConflict, match="'mailbox'"):
        load("stdlib", number)


class FailsToLoad(Speaks):
    """Brings a module and cannot be loaded."""

    def load_context(self, context):
        raise RuntimeError


def test_a_version_that_fails_to_load_keeps_no_name_from_others(load, shelf, tmp_path):
    broken = write_module(tmp_path / "broken", "speaks_later", "broken")
    fails = shelf.log("later", FailsToLoad("speaks_later"), code_paths=[str(broken)], input_example=None)
    works = log_speaker(shelf, tmp_path, "later", "speaks_later", "works")
    with pytest.raises(LoadFailed, match="RuntimeError"):
        load("later", fails)
    assert load("later", works).predict(text_frame("a"), None) == ["works"]


def log_from_code(shelf, tmp_path, name, source):
    file = tmp_path / f"{name}.py"
    file.write_text(textwrap.dedent(source))
    return shelf.log(name, str(file), input_example=None)


MODEL_FROM_CODE = """
    import time
    import mlflow
    import pandas as pd
    from mlflow.pyfunc import PythonModel

    class Told(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            return ["{word}"]

    time.sleep(0.3)
    mlflow.models.set_model(Told())
    time.sleep(0.3)
"""


def test_models_from_code_that_load_at_the_same_time_stay_apart(load, shelf, tmp_path):
    numbers = {
        word: log_from_code(shelf, tmp_path, f"told_{word}", MODEL_FROM_CODE.format(word=word))
        for word in ("one", "two")
    }
    answers = {}

    def load_and_ask(word):
        answers[word] = load(f"told_{word}", numbers[word]).predict(text_frame("a"), None)

    threads = [threading.Thread(target=load_and_ask, args=(word,)) for word in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {"one": ["one"], "two": ["two"]}


def test_a_file_that_sets_no_model_does_not_answer_as_the_last_one(load, shelf, tmp_path):
    told = log_from_code(shelf, tmp_path, "told", MODEL_FROM_CODE.format(word="told"))
    load("told", told)
    # The flag decides at run time: the file sets a model while it is logged and forgets to when it is served.
    forgets = """
        import os
        import mlflow
        import pandas as pd
        from mlflow.pyfunc import PythonModel

        class Forgets(PythonModel):
            def predict(self, context, model_input: pd.DataFrame, params=None):
                return ["forgets"]

        if "SETS_NO_MODEL" not in os.environ:
            mlflow.models.set_model(Forgets())
    """
    number = log_from_code(shelf, tmp_path, "forgets", forgets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETS_NO_MODEL", "1")
        with pytest.raises(LoadFailed):
            load("forgets", number)


def test_mlflow_still_keeps_the_last_model_from_code_where_we_reset_it():
    assert hasattr(mlflow.models.model, "__mlflow_model__")
    mlflow.models.set_model(Shout("x"))
    assert isinstance(mlflow.models.model.__mlflow_model__, Shout)
    mlflow.models.model.__mlflow_model__ = None


class Query(BaseModel):
    text: str
    tags: list[str] = []


class Hinted(mlflow.pyfunc.PythonModel):
    """Takes what its type hint says, defaults included."""

    def predict(self, model_input: list[Query], params=None) -> list[str]:
        return [f"{query.text}:{len(query.tags)}" for query in model_input]


async def test_a_type_hint_decides_what_its_model_accepts(client, shelf):
    number = shelf.log("hinted", Hinted(), input_example=[{"text": "a", "tags": ["b"]}])
    async with client("hinted", number) as http:
        full = await http.post("/serve", json={"inputs": [{"text": "a", "tags": ["x"]}, {"text": "b", "tags": []}]})
        assert full.json() == ["a:1", "b:0"]
        # A default in the hint is not in the signature; the hint itself has the last word.
        assert (await http.post("/serve", json={"inputs": [{"text": "a"}]})).json() == ["a:0"]
        for wrong in ({"inputs": [{"tags": []}]}, {"inputs": [{"text": 1}]}, {"inputs": [{"text": "a", "x": 1}]}, [1]):
            assert (await http.post("/serve", json=wrong)).status_code == 422


def test_a_refusal_by_the_model_is_told_apart_from_its_failure(load, shelf):
    number = shelf.log("hinted", Hinted(), input_example=[{"text": "a", "tags": ["b"]}])
    with pytest.raises(RefusedByModel):
        load("hinted", number).predict([{"nothing": 1}], None)


async def test_a_version_without_a_python_function_is_a_conflict(plane):
    async with plane(start=False) as made:
        other = replace(made.contract.default, card=replace(made.contract.default.card, flavor=None))
        assert "python_function" in made.contract.differences(other)[0]["message"]


class Chat(mlflow.pyfunc.ChatModel):
    """Answers with what it was told last."""

    def predict(self, context, messages, params):
        said = {"role": "assistant", "content": f"{messages[-1].content} at {params.temperature}"}
        return ChatCompletionResponse.from_dict({"choices": [{"index": 0, "message": said}]})


async def test_a_chat_model_takes_one_conversation_at_a_time(client, shelf):
    number = shelf.log("chat", Chat(), input_example={"messages": [{"role": "user", "content": "hello"}]})
    conversation = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    async with client("chat", number) as http:
        answered = await http.post("/serve", json=conversation)
        assert answered.json()["choices"][0]["message"]["content"] == "hi at 0.5"
        many = await http.post("/serve", json=[conversation, conversation])
        assert (many.status_code, "one request at a time" in many.json()["detail"]) == (422, True)


class Noted(ModelFiles):
    """Files that note whether they were released."""

    released = False

    def release(self):
        self.released = True


class Nothing:
    """A model that does nothing."""

    def close(self):
        pass


def test_a_directory_whose_modules_others_may_share_is_known_and_held_once(tmp_path):
    code = tmp_path / "one" / "code"
    code.mkdir(parents=True)
    (code / "a_module_of_one_version.py").write_text("")
    with claimed(code):
        pass
    assert is_home(tmp_path / "one")
    held = [Noted(tmp_path / "one", 1) for _ in range(3)]
    for files in held:
        HeldModel(Nothing(), files).close()
    assert [files.released for files in held] == [False, True, True]
    assert not is_home(tmp_path / "other")
