"""LitServe with an MLflow model: ``python litserve_server.py FOLDER PORT``. Runs in LitServe's environment."""

import sys
from itertools import accumulate
from typing import Any

import litserve
import mlflow
import pandas as pd


class Predict(litserve.LitAPI):  # type: ignore[misc]
    """Merges the rows of waiting requests into one frame."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = mlflow.pyfunc.load_model(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Return the rows of one request."""
        return request["rows"]

    def batch(self, inputs: list[Any]) -> Any:
        """Remember how many rows each request has, and put them together."""
        self.counts = [len(rows) for rows in inputs]
        return [row for rows in inputs for row in rows]

    def predict(self, x: Any) -> Any:
        """Predict for all rows."""
        answers = self.model.predict(pd.DataFrame(x))
        return answers if isinstance(answers, list) else answers.tolist()

    def unbatch(self, output: Any) -> Any:
        """Give every request its own."""
        ends = list(accumulate(self.counts))
        return [output[end - count : end] for end, count in zip(ends, self.counts, strict=True)]

    def encode_response(self, output: Any) -> Any:
        """Return what becomes JSON."""
        return output


if __name__ == "__main__":
    api = Predict(max_batch_size=64, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
