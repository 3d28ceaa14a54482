"""The precision of weights and of computing."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from registry_serve.errors import HandlerInvalid

_DTYPES = {
    name: dtype
    for dtype, names in {
        torch.float16: ("fp16", "float16", "half"),
        torch.bfloat16: ("bf16", "bfloat16"),
        torch.float32: ("fp32", "float32", "float"),
    }.items()
    for name in names
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Where and how precisely a model computes.

    Attributes:
        device: ``cuda`` or ``cpu``.
        weights: dtype of the weights.
        autocast: dtype of torch's automatic mixed precision; None for none.
    """

    device: str
    weights: torch.dtype
    autocast: torch.dtype | None

    @classmethod
    def of(cls, model_dtype: str, autocast_dtype: str | None) -> Precision:
        """Read the settings of a handler, for the device that torch sees.

        Raises:
            HandlerInvalid: there is no such dtype.
        """
        weights = _dtype("model_dtype", model_dtype)
        autocast = None if autocast_dtype is None else _dtype("autocast_dtype", autocast_dtype)
        if autocast is torch.float32:
            raise HandlerInvalid("huggingface", "autocast_dtype must be fp16 or bf16: it is for less precision")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and weights is torch.float16:
            logger.warning("There is no GPU: the model is loaded in fp32, since CPUs compute slowly in fp16.")
            weights = torch.float32
        return cls(device, weights, autocast)

    def autocasting(self) -> AbstractContextManager[None]:
        """Return a context in which torch computes as asked, in the thread that enters it."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.autocast)


def _dtype(setting: str, name: str) -> torch.dtype:
    dtype = _DTYPES.get(str(name).removeprefix("torch."))
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise HandlerInvalid("huggingface", f"{setting} must be one of {known}, and is {name!r}")
    return dtype
