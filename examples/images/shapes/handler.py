"""An image classifier behind a typed API: what is annotated here is checked, and shown on /docs."""

import base64
import binascii
import io
from pathlib import Path
from typing import Annotated, TypedDict

import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from registry_serve import InvalidRequest, ModelHandlerInterface
from shapes.drawing import SHAPES
from shapes.network import as_tensor, network

WEIGHTS = Path(__file__).parent / "weights.pt"


class Picture(TypedDict):
    image: Annotated[str, Field(description="PNG or JPEG, in base64", examples=["iVBORw0KGgo..."])]


class Parameters(TypedDict, total=False):
    top_k: Annotated[int, Field(ge=1, le=len(SHAPES), description="How many shapes to name; 1 if not given")]


class Question(TypedDict):
    input: Picture
    parameters: Parameters


class Shape(TypedDict):
    label: str
    score: float


class ShapeHandler(ModelHandlerInterface):
    def __init__(self) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network()
        self._network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
        self._network.to(self._device).eval()

    def predict(self, model_requests: list[Question]) -> list[list[Shape]]:
        pictures = [_picture(place, each["input"]["image"]) for place, each in enumerate(model_requests)]
        with torch.inference_mode():
            scores = self._network(torch.stack(pictures).to(self._device)).softmax(1)
        # Requests that come together have equal parameters.
        best = scores.topk(model_requests[0]["parameters"].get("top_k", 1))
        return [
            [{"label": SHAPES[place], "score": round(score, 4)} for score, place in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _picture(place: int, text: str) -> torch.Tensor:
    try:
        return as_tensor(Image.open(io.BytesIO(base64.b64decode(text, validate=True))))
    except (binascii.Error, UnidentifiedImageError, OSError):
        message = "must be a PNG or JPEG image in base64"
        raise InvalidRequest([{"location": ["inputs", place, "image"], "message": message}]) from None
