"""Loaded models: what the data plane asks of one, whatever kind it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol, runtime_checkable

from registry_serve.generation import Chunk


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


@runtime_checkable
class GeneratingModel(Protocol):
    """A loaded model that generates text by an engine of its own, which takes many requests at a time.

    Its methods belong to the event loop; they never block it.
    """

    async def answer(self, data: Any, params: dict[str, Any] | None, progressed: Callable[[], None]) -> Any:
        """Answer for all rows.

        Args:
            data: as for ``predict``.
            params: as for ``predict``.
            progressed: called whenever the engine has come on with one of them.

        Raises:
            InvalidRequest: a row or a parameter is wrong.
            RequestTooLarge: a row can never be answered.
            EngineLost: no request can be answered any more.
            Exception: anything else that goes wrong.
        """

    def generate(self, data: Any, params: dict[str, Any] | None) -> AsyncGenerator[Chunk, None]:
        """Answer for one row; closing the generator frees what it holds of the engine.

        Args:
            data: as for ``predict``.
            params: as for ``predict``.

        Raises:
            Exception: as ``answer``.
        """

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more, and only another replica helps."""

    def engine_status(self) -> dict[str, Any]:
        """Return what its engine does, ready for JSON."""


class RefusedByModel(Exception):
    """The model found the input invalid by rules that its signature does not tell."""


class ModelLost(Exception):
    """The process that the model ran in has ended: the model cannot be called again, and has to be closed."""
