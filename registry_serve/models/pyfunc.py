"""Models of any MLflow flavor, through its common ``python_function`` interface."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import mlflow.models.model
import yaml
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model

from registry_serve.errors import CodeConflict, LoadFailed
from registry_serve.models import RefusedByModel
from registry_serve.models.code_paths import CodeClash, claimed, forget_repeated_paths
from registry_serve.models.direct import Predict, shortest_way
from registry_serve.registry import ModelVersion

Stream = Callable[[Any, dict[str, Any] | None], Iterator[Any]]

# MLflow hands a model that is made by running a file, and its sys.path entries, through globals of the process.
_globals_of_mlflow = threading.Lock()


class PyfuncModel:
    """A loaded pyfunc, whose metadata have the signature that requests are checked against."""

    def __init__(self, model: PyFuncModel) -> None:
        self._predict: Predict | None = shortest_way(model)

    def predict(self, data: Any, params: dict[str, Any] | None) -> Any:
        """Answer for all rows at once, given as ``RequestSchema`` makes them for the model's signature."""
        assert self._predict is not None
        with _refusals():
            return self._predict(data, params)

    def close(self) -> None:
        """Drop the model; its memory is freed with its last reference."""
        self._predict = None


class StreamingPyfuncModel(PyfuncModel):
    """A loaded pyfunc that can also answer piece by piece."""

    def __init__(self, model: PyFuncModel) -> None:
        super().__init__(model)
        self._stream: Stream | None = model.predict_stream

    def stream(self, data: Any, params: dict[str, Any] | None) -> Generator[Any, None, None]:
        """Answer for one row, which MLflow checks and hands on as it does for callers from Python."""
        assert self._stream is not None
        with _refusals():
            pieces: Any = self._stream(data, params)
            # MLflow's own generator, which ends the model's when it is closed.
            with closing(pieces):
                yield from pieces

    def close(self) -> None:
        """Drop the model."""
        self._stream = None
        super().close()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise RefusedByModel from error
        raise


def load_pyfunc(version: ModelVersion, directory: Path) -> PyfuncModel:
    """Load a version from a local copy of its artifacts. Blocks; call it from a worker thread.

    Args:
        version: whose artifacts they are.
        directory: holds the ``MLmodel`` file.

    Raises:
        CodeConflict: the version brings modules that clash with another version's.
        LoadFailed: anything that goes wrong in MLflow or in the model's own loading code.
    """
    try:
        one_at_a_time = version.card.code_paths or version.card.from_code
        model = _load_one_at_a_time(version, directory) if one_at_a_time else _load(directory)
    except CodeClash as clash:
        raise CodeConflict(version.model, version.number, clash.args[0]) from None
    except Exception as error:
        raise LoadFailed(version.model, version.number, _cause(error)) from error
    if version.card.signature is not None:
        # The files may be of another moment than the card: MLflow shall enforce what requests were checked against.
        model.metadata.signature = version.card.signature
    return StreamingPyfuncModel(model) if version.card.streamable else PyfuncModel(model)


def _load(directory: Path) -> PyFuncModel:
    return load_model(str(directory), suppress_warnings=False)


def _load_one_at_a_time(version: ModelVersion, directory: Path) -> PyFuncModel:
    with _globals_of_mlflow:
        names = claimed(directory / _code_folder(directory)) if version.card.code_paths else nullcontext()
        try:
            with names:
                _forget_last_model_from_code()
                return _load(directory)
        finally:
            forget_repeated_paths()


def _code_folder(directory: Path) -> str:
    document = yaml.safe_load((directory / "MLmodel").read_bytes())
    return str(document["flavors"]["python_function"]["code"])


def _forget_last_model_from_code() -> None:
    # A file that forgets mlflow.models.set_model() would otherwise answer as the last model that did not. There is
    # no public way to unset it; a test fails when the name moves.
    mlflow.models.model.__mlflow_model__ = None


def _cause(error: BaseException) -> str:
    """Name the kind of failure without quoting it: messages hold paths and configuration."""
    if isinstance(error, ModuleNotFoundError):
        return f"the Python module {error.name!r} is not installed on the server"
    if isinstance(error, MemoryError):
        return "the server ran out of memory"
    return f"loading raised {type(error).__name__}"
