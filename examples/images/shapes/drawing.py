"""Pictures of shapes, drawn with Pillow: what the classifier learns from, and something to ask it."""

import base64
import io
import random

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
SIDE = 32


def drawn(shape: str, chance: random.Random) -> Image.Image:
    """Draw one shape, dark or light, of any size and at any place."""
    paper, ink = chance.sample([chance.randrange(0, 90), chance.randrange(160, 256)], 2)
    image = Image.new("L", (SIDE, SIDE), paper)
    size = chance.randrange(12, 27)
    left, top = chance.randrange(1, SIDE - size), chance.randrange(1, SIDE - size)
    right, bottom = left + size, top + size
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=ink)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=ink)
    else:
        pen.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=ink)
    return image


def as_text(image: Image.Image) -> str:
    """Return a picture as JSON can hold it: PNG, in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
