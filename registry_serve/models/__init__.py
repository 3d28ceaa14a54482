"""Loaded models: what the data plane asks of one, whatever kind it is."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable


class LoadedModel(Protocol):
    """A model in memory. It is called from one thread, its own, and by one caller at a time."""

    def predict(self, data: Any, params: dict[str, Any] | None) -> Any:
        """Answer for all rows at once.

        Args:
            data: a frame, an ndarray, a dict of ndarrays, a list or None, as the signature says.
            params: inference params that the request gave, or None.

        Raises:
            RefusedByModel: the model itself found the input invalid.
            ModelLost: its process has ended, where it has one of its own.
            Exception: anything else that goes wrong in the model.
        """

    def close(self) -> None:
        """Free what it holds. Called once, after the last call of ``predict``."""


@runtime_checkable
class StreamingModel(Protocol):
    """A loaded model that can answer one request piece by piece."""

    def stream(self, data: Any, params: dict[str, Any] | None) -> Generator[Any, None, None]:
        """Answer for one row; closing the generator stops the model.

        Args:
            data: as for ``predict``.
            params: as for ``predict``.
        """


class RefusedByModel(Exception):
    """The model found the input invalid by rules that its signature does not tell."""


class ModelLost(Exception):
    """The process that the model ran in has ended: the model cannot be called again, and has to be closed."""
