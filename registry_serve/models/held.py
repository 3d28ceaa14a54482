"""A loaded model together with its files, which stay on the node's disk for as long as the model may read them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from registry_serve.downloaders import ModelFiles
from registry_serve.errors import CodeConflict, EnvironmentConflict
from registry_serve.generation import Chunk
from registry_serve.models import GeneratingModel, LoadedModel, StreamingModel
from registry_serve.models.code_paths import is_home

logger = logging.getLogger(__name__)

#: Files that modules of this process may still be read from, by directory; held as long as the process lives.
_homes: dict[Path, ModelFiles] = {}


class HeldModel:
    """A loaded model that gives its files back when it is closed.

    Attributes:
        size_bytes: how large the files are.
    """

    def __init__(self, model: LoadedModel, files: ModelFiles) -> None:
        self.size_bytes = files.size_bytes
        self._model: Any = model
        self._files = files

    def predict(self, data: Any, params: dict[str, Any] | None) -> Any:
        """Answer for all rows at once, as the model itself does."""
        return self._model.predict(data, params)

    def close(self) -> None:
        """Close the model, and only then let go of its files; those with modules of this process stay held, once."""
        model, self._model = self._model, None
        try:
            if model is not None:
                model.close()
        finally:
            if not is_home(self._files.directory) or not self._is_first():
                self._files.release()

    def _is_first(self) -> bool:
        """Say whether these are the files that keep a home on the disk; further holds of the same one do nothing."""
        return _homes.setdefault(self._files.directory, self._files) is self._files


class HeldStreamingModel(HeldModel):
    """One that can also answer piece by piece."""

    def stream(self, data: Any, params: dict[str, Any] | None) -> Generator[Any, None, None]:
        """Answer for one row, as the model itself does."""
        yield from self._model.stream(data, params)


class HeldGeneratingModel(HeldModel):
    """One that generates text by an engine of its own."""

    async def answer(self, data: Any, params: dict[str, Any] | None, progressed: Callable[[], None]) -> Any:
        """Answer for all rows, as the model itself does."""
        return await self._model.answer(data, params, progressed)

    async def generate(self, data: Any, params: dict[str, Any] | None) -> AsyncGenerator[Chunk, None]:
        """Answer for one row, as the model itself does."""
        async with aclosing(self._model.generate(data, params)) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more."""
        return bool(self._model.lost)

    def engine_status(self) -> dict[str, Any]:
        """Return what its engines do."""
        status: dict[str, Any] = self._model.engine_status()
        return status


def load_held(fetch: Callable[[], ModelFiles], load: Callable[[Path], LoadedModel]) -> HeldModel:
    """Fetch a model's files and load it. Where that fails because the files are damaged, both are done once more.

    Args:
        fetch: gets the files; damaged ones that nobody uses are fetched anew.
        load: loads the model from their directory.

    Raises:
        LoadFailed: the model cannot be loaded from sound files.
        RegistryServeError: what ``fetch`` raised.
    """
    try:
        return _load_once(fetch(), load)
    except _Damaged as damaged:
        logger.warning("The files in %s are damaged; they are fetched again.", damaged.args[0])
    try:
        return _load_once(fetch(), load)
    except _Damaged as damaged:
        raise damaged.__cause__ or damaged from None


class _Damaged(Exception):
    """The files are not what was downloaded. ``args``: their directory; the cause is why the model cannot be loaded."""


def _load_once(files: ModelFiles, load: Callable[[Path], LoadedModel]) -> HeldModel:
    try:
        model = load(files.directory)
        if isinstance(model, GeneratingModel):
            return HeldGeneratingModel(model, files)
        return (HeldStreamingModel if isinstance(model, StreamingModel) else HeldModel)(model, files)
    except (CodeConflict, EnvironmentConflict):
        files.release()
        raise
    except Exception as error:
        # Not only LoadFailed: what is read before the model itself, its MLmodel file, may be damaged as well.
        sound = files.verify()
        files.release()
        if sound:
            raise
        raise _Damaged(files.directory) from error
    except BaseException:
        files.release()
        raise
