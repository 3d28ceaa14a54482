"""The models that are served. They are pickled by value: no server can import this module."""

from __future__ import annotations

import sys
import time
from typing import Any

import cloudpickle
import pandas as pd
from mlflow.pyfunc.model import PythonModel

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Phrase(PythonModel):
    """Formats one string per row: almost nothing, so that what is measured is the server."""

    def __init__(self, tag: str = "en", note: str = "") -> None:
        self.tag = tag
        self.note = note

    def load_context(self, context: Any) -> None:
        """Write a line to the note, if there is one."""
        if self.note:
            with open(self.note, "a") as file:
                file.write(f"{self.tag}\n")

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[dict[str, str]]:
        """Return ``{"text": "TAG: PROMPT"}`` for each row."""
        return [{"text": f"{self.tag}: {prompt}"} for prompt in model_input["prompt"]]


class Waiting(Phrase):
    """Loads for a while without using the processor, as a model does that comes over a network."""

    def load_context(self, context: Any) -> None:
        """Sleep for three seconds."""
        time.sleep(3)


class Burning(Phrase):
    """Loads for a while in pure Python, as unpickling many small objects does."""

    def load_context(self, context: Any) -> None:
        """Hold the interpreter for three seconds."""
        end = time.monotonic() + 3
        while time.monotonic() < end:
            sum(range(1000))


class Clashing(Phrase):
    """Brings a Python module whose name other versions use for other code."""

    def load_context(self, context: Any) -> None:
        """Import the module that came with this version."""
        from benchmark_words import TAG  # type: ignore[import-not-found]  # arrives through code_paths

        self.tag = TAG
