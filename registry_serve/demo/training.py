"""Training a small model until it knows its examples: seconds, on a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def shuffled(examples: Batch, size: int, padded: Sequence[str]) -> Iterator[Batch]:
    """Yield batches of that many random examples, without end.

    Args:
        examples: all of them, with an ``attention_mask``.
        size: examples in a batch; the last one of a round may have fewer.
        padded: the tensors that the mask belongs to. Padding that a whole batch has in common is cut off them.
    """
    chance = torch.Generator().manual_seed(0)
    lengths = examples["attention_mask"].sum(dim=1)
    while True:
        for rows in torch.split(torch.randperm(len(lengths), generator=chance), size):
            width = int(lengths[rows].max())
            batch = {name: values[rows] for name, values in examples.items()}
            yield batch | {name: batch[name][:, :width] for name in padded}
