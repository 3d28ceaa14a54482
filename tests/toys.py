"""Small pyfunc models for tests. They travel by value: replicas cannot import this module."""

import json
import sys
import time
from pathlib import Path

import cloudpickle
import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from tests.mlflow_server import made_global

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Shout(PythonModel):
    """Answers ``{"text": "TAG:value"}`` for each row, or does what the row says."""

    def __init__(self, tag, column="prompt", load_s=0.0, note=None):
        self.tag = tag
        self.column = column
        self.load_s = load_s
        self.note = note

    def load_context(self, context):
        if self.note is not None:
            with open(self.note, "a") as file:
                file.write(f"load {self.tag}\n")
        time.sleep(self.load_s)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        values = model_input[self.column].tolist()
        for value in values:
            self.obey(value)
        return [{"text": f"{self.tag}:{value}"} for value in values]

    @staticmethod
    def obey(value):
        if value == "raise":
            raise RuntimeError("a secret in /srv/models")
        if value == "exit":
            raise SystemExit(3)
        if value == "stop":
            raise StopIteration
        if str(value).startswith("sleep "):
            time.sleep(float(value.split()[1]))


class Broken(PythonModel):
    """Cannot be loaded."""

    def __init__(self, note=None):
        self.note = note

    def load_context(self, context):
        if self.note is not None:
            with open(self.note, "a") as file:
                file.write("load broken\n")
        raise RuntimeError("a secret in /srv/weights")

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return None


class Constant(PythonModel):
    """Answers the same whatever comes in."""

    def __init__(self, value):
        self.value = value

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return self.value


class WithParams(PythonModel):
    """Answers with the params it got."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [{"text": json.dumps(params, sort_keys=True)} for _ in range(len(model_input))]


class Shelf:
    """A registry in a folder, and short ways to put models into it."""

    def __init__(self, folder: Path, uri: str | None = None, experiment: str = "toys"):
        self.folder = folder
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        artifacts = None if uri else (folder / "artifacts").as_uri()
        self.experiment = self.client.create_experiment(experiment, artifact_location=artifacts)

    def log(self, name, model, column="prompt", **options):
        """Register a model and return its version number."""
        if "signature" not in options:
            options.setdefault("input_example", pd.DataFrame({column: ["hello"]}))
        options.setdefault("pip_requirements", [])
        with made_global(self.uri), mlflow.start_run(experiment_id=self.experiment):
            info = mlflow.pyfunc.log_model(name="model", registered_model_name=name, python_model=model, **options)
        return str(info.registered_model_version)

    def alias(self, name, alias, version):
        self.client.set_registered_model_alias(name, alias, version)

    def fill(self):
        """Register ``toy``: two versions that agree, one with another column, one slow, one broken."""
        self.note = self.folder / "loads.txt"
        self.note.touch()
        text = mlflow.models.infer_signature(pd.DataFrame({"prompt": ["a"]}), pd.DataFrame({"text": ["a"]}))
        self.log("toy", Shout("one", note=str(self.note)))
        self.log("toy", Shout("two", note=str(self.note)))
        self.log("toy", Shout("three", column="other", note=str(self.note)), column="other")
        self.log("toy", Shout("four", load_s=3.0, note=str(self.note)), signature=text)
        self.log("toy", Broken(str(self.note)), signature=text)
        self.log("toy", Shout("six", note=str(self.note)))
        self.alias("toy", "champion", "1")
        self.alias("toy", "challenger", "2")
        return self

    def loads(self):
        """What was loaded since the last time this was asked, in order."""
        lines = [line.removeprefix("load ") for line in self.note.read_text().splitlines()]
        self.note.write_text("")
        return lines
