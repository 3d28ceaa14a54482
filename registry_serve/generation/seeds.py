"""Seeds: drawing tokens from a request's own source of chance, whatever others draw or seed in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Let ``generate`` draw from a seed in this thread: what it would draw after ``torch.manual_seed``.

    That itself would not do. What it seeds belongs to the whole process, and continuous batching, in its own thread,
    seeds it too whenever it starts.

    Args:
        seed: None for torch's own source of chance.
        device: the model's.
    """
    if seed is None:
        yield
        return
    with _DrawingFrom(torch.Generator(device).manual_seed(seed)):
        yield


class _DrawingFrom(TorchFunctionMode):
    """Gives ``torch.multinomial``, by which ``generate`` draws, a generator: it takes none from its caller."""

    def __init__(self, chances: torch.Generator) -> None:
        super().__init__()
        self._chances = chances

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.multinomial:
            given["generator"] = self._chances
        return func(*args, **given)
