"""An embedding model of one's own: texts in, vectors out, all texts of a batch at once."""

import re
from pathlib import Path
from typing import TypedDict

import numpy as np

from registry_serve import InvalidRequest, ModelHandlerInterface

HERE = Path(__file__).parent


class Parameters(TypedDict, total=False):
    dimensions: int


class Text(TypedDict):
    input: str
    parameters: Parameters


class EmbeddingHandler(ModelHandlerInterface):
    """Averages word vectors; the first dimensions tell the most, so that a client may ask for fewer."""

    def __init__(self, model: str = "vectors.npz") -> None:
        stored = np.load(HERE / model)
        self._place = {str(word): number for number, word in enumerate(stored["words"])}
        self._vectors = stored["vectors"]

    def predict(self, model_requests: list[Text]) -> list[list[float]]:
        # Requests that come together have equal parameters.
        dimensions = model_requests[0]["parameters"].get("dimensions", self._vectors.shape[1])
        if not 1 <= dimensions <= self._vectors.shape[1]:
            message = f"must be from 1 to {self._vectors.shape[1]}"
            raise InvalidRequest([{"location": ["parameters", "dimensions"], "message": message}])
        counts = np.zeros((len(model_requests), len(self._place)), np.float32)
        for row, request in enumerate(model_requests):
            for word in re.findall(r"\w+", request["input"].lower()):
                if word in self._place:
                    counts[row, self._place[word]] += 1
        sums = counts @ self._vectors[:, :dimensions]
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return (sums / np.maximum(lengths, 1e-9)).tolist()
