"""Seeds: drawing tokens from a request's own source of chance, whatever others draw or seed in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: What draws, and can be told what from. ``generate`` uses the first, and models the others where they draw at all.
_DRAWING = frozenset(
    {
        torch.multinomial,
        torch.Tensor.multinomial,
        torch.bernoulli,
        torch.Tensor.bernoulli,
        torch.rand,
        torch.randn,
        torch.rand_like,
        torch.randn_like,
        torch.Tensor.bernoulli_,
        torch.Tensor.exponential_,
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
    }
)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Let ``generate`` draw from a seed in this thread: the tokens that it would draw after ``torch.manual_seed``.

    That itself would not do. What it seeds belongs to the whole process, and continuous batching, in its own thread,
    seeds it too whenever it starts.

    Args:
        seed: None for torch's own source of chance.
    """
    if seed is None:
        yield
        return
    with _DrawingFrom(seed):
        yield


class _DrawingFrom(TorchFunctionMode):
    """Gives what draws a generator, where the caller gives none: one for each device, of the same seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWING and given.get("generator") is None:
            given = {**given, "generator": self._generator(_device(args, given))}
        return func(*args, **given)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _device(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    """Return where a call draws: where its tensor is, or else where it makes one."""
    tensors = (each.device for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
    return next(tensors, None) or torch.empty(0, device=kwargs.get("device")).device
