"""Training a small model until it knows its examples: seconds, on a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

#: Called with how much of a stage is done, from 0 to 1.
Report = Callable[[float], None]

#: One batch, by the names of the model's arguments; ``labels`` or positions included, so that a loss comes back.
Batch = dict[str, torch.Tensor]

IGNORED = -100  # the label that the losses of Transformers skip


class TrainingFailed(RuntimeError):
    """The model has not learned its examples in the steps it was given."""


def train(
    model: Any,
    batches: Iterator[Batch],
    knows_everything: Callable[[], bool],
    report: Report,
    *,
    usual_steps: int,
    check_every: int = 20,
    learning_rate: float = 3e-3,
) -> None:
    """Train until ``knows_everything``, which is asked now and then with the model in evaluation mode.

    Args:
        model: a Transformers model that answers a batch with a ``loss``.
        batches: batches without end.
        knows_everything: the examination that ends the training.
        report: told the progress, measured against ``usual_steps``.
        usual_steps: how many steps it usually takes. The learning rate falls until then, and stays low.
        check_every: steps from one examination to the next, the first at half of ``usual_steps``.
        learning_rate: of AdamW at its highest, after a short warm-up.

    Raises:
        TrainingFailed: four times the usual steps were not enough.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, max(0.1, 1 - step / usual_steps))
    )
    for step in range(1, 4 * usual_steps + 1):
        model.train()
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(min(step / usual_steps, 0.99))
        if step >= usual_steps // 2 and step % check_every == 0:
            model.eval()
            if knows_everything():
                report(1.0)
                return
    raise TrainingFailed(
        f"A {type(model).__name__} has not learned its examples in {4 * usual_steps} steps. Build the demo again; "
        "if it fails again, please report it with the versions of torch and transformers."
    )


def shuffled(examples: Batch, size: int, seed: int = 0) -> Iterator[Batch]:
    """Yield batches of that many random examples, without end."""
    chance = torch.Generator().manual_seed(seed)
    count = len(next(iter(examples.values())))
    while True:
        for rows in torch.randperm(count, generator=chance).split(size):
            chosen = {name: values[rows] for name, values in examples.items()}
            yield _trimmed(chosen)


def _trimmed(batch: Batch) -> Batch:
    """Cut the columns that are padding in every row: short batches are fast batches."""
    trimmed = dict(batch)
    if "attention_mask" in batch:
        width = int(batch["attention_mask"].sum(dim=1).max())
        width_of_inputs = batch["input_ids"].shape[1]
        for name, values in batch.items():
            if values.dim() == 2 and values.shape[1] == width_of_inputs:
                trimmed[name] = values[:, :width]
    return trimmed


def best_device() -> torch.device:
    """Say where a model should run: on the accelerator that this process was given, if any."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
