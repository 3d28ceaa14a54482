"""A small convolutional network."""

import torch
from PIL import Image
from torch import nn

from shapes.drawing import SHAPES, SIDE


def network() -> nn.Module:
    """Return an untrained one: (images, 1, SIDE, SIDE) to (images, shapes)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * (SIDE // 4) ** 2, 32), nn.ReLU(), nn.Linear(32, len(SHAPES))),
    )


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Return a picture of any size and colours as (1, SIDE, SIDE), between -1 and 1."""
    grey = image.convert("L").resize((SIDE, SIDE))
    values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return values.reshape(1, SIDE, SIDE) / 127.5 - 1
