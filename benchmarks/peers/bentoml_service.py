"""BentoML with an MLflow model. Runs in BentoML's environment.

``BENCHMARK_MODEL`` names the model's folder; ``BENCHMARK_BATCHING=1`` lets BentoML merge waiting requests.
"""

import os
from typing import Any

import bentoml
import mlflow
import pandas as pd

_BATCHING = os.environ["BENCHMARK_BATCHING"] == "1"


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024}, logging={"access": {"enabled": False}})
class Predict:
    """Predicts for the rows of a request, or of several."""

    def __init__(self) -> None:
        """Load the model in the worker."""
        self.model = mlflow.pyfunc.load_model(os.environ["BENCHMARK_MODEL"])

    @bentoml.api(batchable=_BATCHING, max_batch_size=1024, max_latency_ms=1000)  # type: ignore[untyped-decorator]
    def predict(self, rows: list[dict[str, Any]]) -> list[Any]:
        """Predict for all rows."""
        answers = self.model.predict(pd.DataFrame(rows))
        return answers if isinstance(answers, list) else answers.tolist()
