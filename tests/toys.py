"""Small pyfunc models for tests. They travel by value: replicas cannot import this module."""

import ctypes
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path

import cloudpickle
import mlflow
import numpy as np
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
        if str(value).startswith("until "):
            while not Path(value.split()[1]).exists():
                time.sleep(0.01)


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


class Noting(PythonModel):
    """Answers each row by itself, notes how many rows each call had, and raises on a row ``bad``.

    Args:
        note: file that the sizes go to.
        most: raises on larger frames.
    """

    def __init__(self, note, most=10**9):
        self.note = note
        self.most = most

    def predict(self, context, model_input: pd.DataFrame, params=None):
        with open(self.note, "a") as file:
            file.write(f"{len(model_input)}\n")
        values = model_input["prompt"].tolist()
        if "bad" in values or len(values) > self.most:
            raise RuntimeError("not this frame")
        if values[0] == "wait":
            time.sleep(0.3)
        return [f"{value}!" for value in values]


class Frame(PythonModel):
    """Answers with something about its frame, mostly the whole of it.

    Args:
        how: ``rank``, ``share`` or ``sort`` its numbers, take the ``first`` row's prompt only, ``broadcast`` it to all
            rows, answer a new number each ``time``, or ``count`` the rows. Only ``words`` depends on each row alone:
            how many different ones it has.
    """

    def __init__(self, how):
        self.how = how

    def predict(self, context, model_input: pd.DataFrame, params=None):
        column = model_input.iloc[:, 0]
        answers = {
            "rank": lambda: column.rank(method="min"),
            "share": lambda: column / column.sum(),
            "sort": lambda: column.sort_values(),
            "first": lambda: [column[0]],
            "broadcast": lambda: [column[0]] * len(column),
            "time": lambda: [time.perf_counter_ns()] * len(column),
            "count": lambda: [len(column)] * len(column),
            "label": lambda: ["large" if column[0] > 2.5 else "small"] * len(column),
            "words": lambda: [len(set(value.split())) for value in column],
            "scale": lambda: (column / column.max() > 0.5).tolist(),
        }
        return list(answers[self.how]())


class WithParams(PythonModel):
    """Answers with the params it got."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [{"text": json.dumps(params, sort_keys=True)} for _ in range(len(model_input))]


class Speller(PythonModel):
    """Answers with its params and letters, piece by piece: of ``ab``, ``{"letter": "a"}`` and ``{"letter": "b"}``.

    It raises at an exclamation mark, waits at a dot, and notes when a stream has ended.
    """

    def __init__(self, note):
        self.note = note

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [list(value) for value in model_input["prompt"]]

    def predict_stream(self, context, model_input, params=None):
        try:
            for letter in model_input["prompt"]:
                if letter == "!":
                    raise RuntimeError("a secret in /srv/models")
                if letter == ".":
                    time.sleep(0.02)
                yield {"letter": letter, **(params or {})}
        finally:
            with open(self.note, "a") as file:
                file.write("ended ")


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


class Obedient(PythonModel):
    """Answers ``TAG PROCESS VALUE`` for each row, and does what files in a folder say while it loads.

    A test decides by these files when it fails, and when it is well again. Orders: ``hang``, until the order is taken
    back; ``freeze``, for ever and without giving up Python's lock; ``raise``; ``memory``, more of it than there is;
    ``exit``, with the whole process. A row may give one too: ``hang`` then lasts as long as the file ``hang``. Each
    model that is in memory has a file in ``alive``.

    Args:
        tag: what it answers with, and the name of the file with the order for its loading.
        folder: holds the files.
    """

    def __init__(self, tag, folder):
        self.tag = tag
        self.folder = str(folder)
        self.life = None

    def load_context(self, context):
        with open(f"{self.folder}/loads", "a") as file:
            file.write(f"{self.tag} {os.getpid()}\n")
        self.life = f"{self.folder}/alive/{os.getpid()}-{uuid.uuid4().hex}"
        Path(self.life).touch()
        order = Path(self.folder, self.tag)
        if order.exists():
            self.obey(order.read_text(), order)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        values = model_input["prompt"].tolist()
        for value in values:
            self.obey(value, Path(self.folder, "hang"))
        return [{"text": f"{self.tag} {os.getpid()} {value}"} for value in values]

    @staticmethod
    def obey(order, until):
        if order == "hang":
            while until.exists():
                time.sleep(0.02)
        elif order == "freeze":
            ctypes.PyDLL(None).sleep(1000)
        elif order == "raise":
            raise RuntimeError("as it was told")
        elif order == "memory":
            np.zeros(2**50)
        elif order == "exit":
            os._exit(1)
        elif order.startswith("sleep "):
            time.sleep(float(order.split()[1]))

    def __del__(self):
        if getattr(self, "life", None) is not None:
            Path(self.life).unlink(missing_ok=True)


class Mourned(PythonModel):
    """Notes when Python deletes it, and holds itself by a reference cycle."""

    def __init__(self, note):
        self.note = note

    def load_context(self, context):
        self.myself = self

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [f"{value}!" for value in model_input["prompt"]]

    def __del__(self):
        if hasattr(self, "myself"):  # not the one that was logged
            with open(self.note, "a") as file:
                file.write(f"{threading.current_thread().name}\n")
