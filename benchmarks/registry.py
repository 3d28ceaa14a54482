"""The registry that all servers read: one SQLite file, built once, built anew when the models change."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.types.schema import ColSpec, Schema

from benchmarks import models
from benchmarks.places import LOADS, REGISTRY, REGISTRY_URI

IRIS_COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
#: Versions of ``many``, for the affinity and memory measurements.
VERSIONS = 40

_EXAMPLE = pd.DataFrame({"prompt": ["The weather is lovely today", "Where do you live?"]})
_TEXT = infer_signature(_EXAMPLE, pd.DataFrame({"text": ["en: The weather is lovely today"]}))


def build() -> None:
    """Make sure that the registry is there and holds what this code says.

    ======== ========== ====================================================
    model    versions   what
    ======== ========== ====================================================
    text     1          formats a string per row
    iris     1          scikit-learn on four columns
    loading  1          warm; the versions of each kind below follow
             2, 3       wait while they load
             4, 5       burn Python while they load
             6, 7, 8    bring a module of one name with different code
    many     40         each notes its loads in a file
    ======== ========== ====================================================
    """
    stamp = REGISTRY / "built"
    sources = b"".join(Path(module).read_bytes() for module in (__file__, str(models.__file__)))
    wanted = f"{hashlib.sha256(sources).hexdigest()} {mlflow.__version__}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(REGISTRY, ignore_errors=True)
    REGISTRY.mkdir(parents=True)
    with redirect_stderr(io.StringIO()):  # MLflow says something about every version
        mlflow.set_tracking_uri(REGISTRY_URI)
        mlflow.set_registry_uri(REGISTRY_URI)
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("benchmarks", (REGISTRY / "artifacts").as_uri()))
        _register_all()
    LOADS.touch()
    stamp.write_text(wanted)


def artifacts(name: str, version: str = "1") -> Path:
    """Return the folder of a version's files, for servers that are given a folder."""
    client = mlflow.MlflowClient(tracking_uri=REGISTRY_URI, registry_uri=REGISTRY_URI)
    source = str(client.get_model_version(name, version).source)
    if source.startswith("models:/"):
        source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    return Path(source.removeprefix("file://"))


def iris_frame() -> tuple[pd.DataFrame, pd.Series[int]]:
    """Return the measurements and species of scikit-learn's iris table."""
    from sklearn.datasets import load_iris

    table = load_iris(as_frame=True)
    return table.data.set_axis(IRIS_COLUMNS, axis="columns"), table.target.astype("int64")


def _register_all() -> None:
    _register("text", models.Phrase())
    _register_iris()
    _register("loading", models.Phrase())
    for kind in (models.Waiting, models.Burning):
        for tag in ("a", "b"):
            _register("loading", kind(tag))
    with tempfile.TemporaryDirectory() as folder:
        for tag in ("a", "b", "c"):
            module = Path(folder, tag, "benchmark_words.py")
            module.parent.mkdir()
            module.write_text(f'TAG = "{tag}"\n')
            _register("loading", models.Clashing(), code_paths=[str(module)])
    for number in range(1, VERSIONS + 1):
        _register("many", models.Phrase(str(number), note=str(LOADS)))


def _register(name: str, model: models.Phrase, signature: ModelSignature = _TEXT, **options: Any) -> None:
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            registered_model_name=name,
            python_model=model,
            signature=signature,
            input_example=None if options else _EXAMPLE,
            pip_requirements=[],
            **options,
        )


def _register_iris() -> None:
    from sklearn.linear_model import LogisticRegression

    frame, species = iris_frame()
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            LogisticRegression(max_iter=1000).fit(frame, species),
            name="model",
            registered_model_name="iris",
            signature=ModelSignature(infer_signature(frame).inputs, Schema([ColSpec("long")])),
            input_example=frame.head(3),
            pip_requirements=["scikit-learn"],
        )
