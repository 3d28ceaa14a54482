"""Trains a classifier of shapes in a few seconds, and draws pictures to ask it about."""

import json
import random
from pathlib import Path

import torch
from shapes.drawing import SHAPES, as_text, drawn
from shapes.network import as_tensor, network

HERE = Path(__file__).parent


def examples(count: int, chance: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures and the places of their shapes in ``SHAPES``."""
    kinds = [number % len(SHAPES) for number in range(count)]
    return torch.stack([as_tensor(drawn(SHAPES[kind], chance)) for kind in kinds]), torch.tensor(kinds)


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a network is no faster on several
    torch.manual_seed(0)
    model, chance = network(), random.Random(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(400):
        pictures, kinds = examples(64, chance)
        loss = torch.nn.functional.cross_entropy(model(pictures), kinds)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.save(model.state_dict(), HERE / "shapes" / "weights.pt")
    pictures, kinds = examples(600, random.Random(1))
    right = (model.eval()(pictures).argmax(1) == kinds).float().mean().item()
    asked = [{"image": as_text(drawn(shape, random.Random(2)))} for shape in ("circle", "triangle")]
    (HERE / "request.json").write_text(json.dumps({"inputs": asked, "parameters": {"top_k": 2}}))
    print(f"{right:.1%} of 600 new pictures are recognised; request.json asks about two more")
