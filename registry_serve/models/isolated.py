"""Models in a process of their own: a child actor on the same node. The one module of the core that knows Ray.

A child is started for one version and ends with it; its process has run nothing else before. It sees the application's
working directory and modules as its parent does, and the same GPUs, which Ray's accounts have with the parent. Ray ends
it when its parent dies.

Data travel as pickles inside Ray's objects: what is unpickled can be written to, as in the parent, while arrays that
Ray itself restores cannot.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import pandas as pd
import psutil
import ray
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RuntimeEnvSetupError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from registry_serve.errors import CodeConflict, LoadFailed, RegistryServeError
from registry_serve.models import LoadedModel, ModelLost, RefusedByModel
from registry_serve.models.pyfunc import load_pyfunc
from registry_serve.registry import ModelVersion
from registry_serve.signature.answers import plain

#: How long a model may take to free what it holds, and then its process to end.
_CLOSE_S = 5.0
#: Where the classes come from that a parent restores; it must not import the modules that a version brings.
_SHARED = frozenset({"builtins", "collections", "copyreg", "datetime", "decimal", "functools", "numpy", "pandas"})
_SHARED |= {"pyarrow", "scipy", "uuid", "zoneinfo"}
#: What a replica's process was given by Ray, and a child of it would not be.
_AS_PARENT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_DIED = (RayActorError, WorkerCrashedError, OutOfMemoryError)

T = TypeVar("T")

logger = logging.getLogger(__name__)


class RaisedInChild(Exception):
    """What the model raised in its process. ``args``: the traceback, as text."""


@dataclass(frozen=True)
class _Raised:
    """An exception on its way to the parent.

    Attributes:
        kind: the name of its class.
        trace: its traceback.
        error: the exception itself, where it is one of ours.
    """

    kind: str
    trace: str
    error: RegistryServeError | RefusedByModel | None


class IsolatedModel:
    """A model that runs in a child process.

    Attributes:
        pid: of that process.
    """

    def __init__(self, child: Any, pid: int) -> None:
        self.pid = pid
        self._child = child

    def predict(self, data: Any, params: dict[str, Any] | None) -> Any:
        """Answer for all rows at once.

        Raises:
            RefusedByModel: the model itself found the input invalid.
            RaisedInChild: it raised anything else.
            ModelLost: its process has ended.
        """
        question = pickle.dumps((data, params), protocol=pickle.HIGHEST_PROTOCOL)
        try:
            answered = ray.get(self._child.predict.remote(question))
        except _DIED as error:
            raise ModelLost from error
        if isinstance(answered, _Raised):
            raise answered.error or RaisedInChild(answered.trace) from RaisedInChild(answered.trace)
        return pickle.loads(answered)  # noqa: S301 - of code that runs here as well

    def close(self) -> None:
        """End the process, and wait a moment until it is gone."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            with suppress(GetTimeoutError, *_DIED):
                ray.get(child.close.remote(), timeout=_CLOSE_S)
        finally:
            ray.kill(child)
        try:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self.pid).wait(_CLOSE_S)
        except psutil.TimeoutExpired:
            logger.warning("The process %s of a closed model is still there.", self.pid)


def load_isolated(version: ModelVersion, directory: Path, requirements: Sequence[str] = ()) -> IsolatedModel:
    """Load a version in a process of its own.

    Args:
        version: whose artifacts they are.
        directory: holds the ``MLmodel`` file.
        requirements: what pip installs for the process; empty for the environment of this one.

    Raises:
        LoadFailed: the model cannot be loaded there, the requirements cannot be installed, or the process has died.
    """
    child = _start(requirements)
    try:
        loaded = ray.get(child.load.remote(version, directory, _probe()))
        if not isinstance(loaded, _Raised):
            pid, probe = loaded
            pickle.loads(probe)  # noqa: S301 - our own
    except RuntimeEnvSetupError as error:
        raise LoadFailed(version.model, version.number, "pip cannot install its requirements") from error
    except _DIED as error:
        happened = "the process of its own that was to load it ended, perhaps for want of memory"
        raise LoadFailed(version.model, version.number, happened) from error
    except BaseException:
        ray.kill(child)
        raise
    if isinstance(loaded, _Raised):
        ray.kill(child)
        raise _load_error(version, loaded) from RaisedInChild(loaded.trace)
    return IsolatedModel(child, pid)


def _load_error(version: ModelVersion, raised: _Raised) -> LoadFailed:
    if isinstance(raised.error, CodeConflict):
        module = raised.error.given["module"]
        happened = f"it brings a Python module {module!r} (code_paths), which the server itself needs: rename it"
        return LoadFailed(version.model, version.number, happened)
    if isinstance(raised.error, LoadFailed):
        return raised.error
    return LoadFailed(version.model, version.number, f"loading raised {raised.kind}")


def _probe() -> bytes:
    """Return data like those of requests: a child with other packages than its parent's may be unable to read them."""
    return pickle.dumps((pd.DataFrame({"a": ["x"], "b": [1.5]}), np.zeros(1)), protocol=pickle.HIGHEST_PROTOCOL)


def _start(requirements: Sequence[str]) -> Any:
    variables = {
        # No other actor has it, so that no process with another past is taken for this one.
        "REGISTRY_SERVE_ISOLATED": uuid4().hex,
        **{name: os.environ[name] for name in _AS_PARENT if name in os.environ},
    }
    context = ray.get_runtime_context()
    environment: dict[str, Any] = {"env_vars": variables}
    if requirements:
        environment["pip"] = pip_environment(requirements, context.runtime_env.pip_config())
    return _Actor.options(
        runtime_env=environment,
        scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False),
    ).remote()


def pip_environment(requirements: Sequence[str], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``pip`` field of a runtime environment: what a parent's says, but for packages required here."""
    required = {_name(each) for each in requirements}
    kept = [each for each in inherited.get("packages", ()) if _name(each) not in required]
    return {**inherited, "packages": [*kept, *requirements]}


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        return requirement


# --- in the child ----------------------------------------------------------------------------------------------------


class _Child:
    """Holds the model. All calls come one after another, in one thread."""

    def __init__(self) -> None:
        self._model: LoadedModel | None = None

    def load(self, version: ModelVersion, directory: Path, probe: bytes) -> tuple[int, bytes] | _Raised:
        return _caught(lambda: self._load(version, directory, probe))

    def predict(self, question: bytes) -> bytes | _Raised:
        return _caught(lambda: self._predict(question))

    def close(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()
        gc.collect()

    def _load(self, version: ModelVersion, directory: Path, probe: bytes) -> tuple[int, bytes]:
        pickle.loads(probe)  # noqa: S301 - our parent's
        self._model = load_pyfunc(version, directory)
        return os.getpid(), _probe()

    def _predict(self, question: bytes) -> bytes:
        assert self._model is not None
        data, params = pickle.loads(question)  # noqa: S301 - our parent's
        return _pickled(self._model.predict(data, params))


_Actor: Any = ray.remote(num_cpus=0, num_gpus=0, max_restarts=0, max_task_retries=0)(_Child)


def _caught(work: Callable[[], T]) -> T | _Raised:
    """Return what work returns or raises: SystemExit would end the actor, and not every error can be pickled."""
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - told to the parent
        ours = error if isinstance(error, (LoadFailed, RefusedByModel)) else None
        return _Raised(type(error).__name__, traceback.format_exc(), ours)


def _pickled(answered: Any) -> bytes:
    """Pickle an answer; one with classes of the model's own is first made of plain values, as the parent would do."""
    buffer = io.BytesIO()
    try:
        _AnswerPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(answered)
    except Exception:  # noqa: BLE001 - a model may answer anything
        return pickle.dumps(plain(answered), protocol=pickle.HIGHEST_PROTOCOL)
    return buffer.getvalue()


class _Foreign(Exception):
    """The answer needs a class that the parent does not have."""


class _AnswerPickler(pickle.Pickler):
    """Refuses classes and functions that are not shared with the parent."""

    def reducer_override(self, value: Any) -> Any:
        if (isinstance(value, type) or callable(value)) and _root(value) not in _SHARED:
            raise _Foreign
        return NotImplemented


def _root(value: Any) -> str:
    """Return the package of a class or function; methods of built-in classes name none themselves."""
    named = value if getattr(value, "__module__", None) else getattr(value, "__self__", None)
    return str(getattr(named, "__module__", None)).partition(".")[0]
