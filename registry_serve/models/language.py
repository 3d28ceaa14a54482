"""Registered language models of MLflow's transformers flavour, by an engine of their own instead of as pyfuncs.

What a version is asked and answers is what its signature says either way: a text for a text. Its params are
``GenerationParameters``, and MLflow's own ``include_prompt`` and ``collapse_whitespace``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from registry_serve.errors import HandlerInvalid, LoadFailed
from registry_serve.generation import Chunk
from registry_serve.generation.parameters import GenerationParameters
from registry_serve.registry import ModelVersion
from registry_serve.signature import plain

if TYPE_CHECKING:
    from registry_serve.generation.generator import Generator

#: Files of the flavour below a version's directory.
_WEIGHTS, _TOKENIZER = "model", "components/tokenizer"
#: Params that are understood: ``GenerationParameters``, and MLflow's own.
_NAMES = {*GenerationParameters.model_fields, "n", "stop_strings", "include_prompt", "collapse_whitespace"}
_SPACE = re.compile(r"\s+")


class LanguageModel:
    """A registered language model with its engine.

    Args:
        generator: of its texts.
        defaults: of the params that its signature has.
    """

    def __init__(self, generator: Generator, defaults: Mapping[str, Any]) -> None:
        self._generator = generator
        self._defaults = defaults

    def predict(self, data: Any, params: dict[str, Any] | None) -> Any:
        """Do nothing: its requests are answered by ``answer``."""
        raise TypeError("A model with an engine is not called.")

    async def answer(self, data: Any, params: dict[str, Any] | None, progressed: Callable[[], None]) -> Any:
        """Answer every row of a frame with one column, or of a list of texts and conversations."""
        parameters = self._parameters(data, params)
        collapses = parameters.pop("collapse_whitespace", False)
        texts = await self._generator.answer(_inputs(data), parameters, progressed)
        return [_collapsed(text) for text in texts] if collapses else texts

    async def generate(self, data: Any, params: dict[str, Any] | None) -> AsyncGenerator[Chunk, None]:
        """Answer the only row."""
        parameters = self._parameters(data, params)
        parameters.pop("collapse_whitespace", None)
        async with aclosing(self._generator.generate(_inputs(data)[0], parameters)) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def lost(self) -> bool:
        """Whether no request can be answered any more."""
        return self._generator.lost

    def engine_status(self) -> dict[str, Any]:
        """Return what its engines do."""
        return self._generator.status()

    def close(self) -> None:
        """End the engines."""
        self._generator.close()

    def _parameters(self, data: Any, params: dict[str, Any] | None) -> dict[str, Any]:
        # Defaults of the signature are those of its own protocol: what came by another one says all that it wants.
        asked = {**(self._defaults if isinstance(data, pd.DataFrame) else {}), **(params or {})}
        if "include_prompt" in asked:
            asked["return_full_text"] = asked.pop("include_prompt")
        return asked


def obstacle(version: ModelVersion, directory: Path) -> str | None:
    """Say why a version that ``generates`` is left to MLflow after all: an engine would answer otherwise.

    Args:
        version: whose artifacts they are.
        directory: holds the ``MLmodel`` file.
    """
    document = yaml.safe_load((directory / "MLmodel").read_bytes())
    flavour = document["flavors"]["transformers"]
    if flavour.get("peft_adaptor") is not None:
        return "it has an adapter"
    if (document.get("metadata") or {}).get("prompt_template"):
        return "it has a prompt template"
    if flavour.get("model_binary") is None:
        return "its weights are not in the registry"
    unknown = sorted(_defaults(version, document).keys() - _NAMES)
    return f"it has params that engines do not know: {', '.join(unknown)}" if unknown else None


def load_language_model(version: ModelVersion, directory: Path, engine: str) -> LanguageModel:
    """Load a version whose card says that it ``generates``. Blocks; call it from a worker thread.

    Args:
        version: whose artifacts they are; there is no ``obstacle``.
        directory: holds the ``MLmodel`` file.
        engine: ``auto``, ``continuous`` or ``static``.

    Raises:
        LoadFailed: anything that goes wrong in Transformers, or what it needs is not installed.
    """
    document = yaml.safe_load((directory / "MLmodel").read_bytes())
    flavour: Mapping[str, Any] = document["flavors"]["transformers"]
    tokenizer = directory / _TOKENIZER
    try:
        from registry_serve.generation.generator import generator_of
        from registry_serve.generation.language import Language
        from registry_serve.generation.precision import Precision
        from registry_serve.generation.pretrained import Source

        precision = Precision.of(flavour.get("torch_dtype") or "fp32", None)
        language = Language(
            Source(str(directory / _WEIGHTS), precision, False, str(tokenizer) if tokenizer.is_dir() else None)
        )
        model = language.weights()
    except ImportError as error:
        happened = f"the Python module {error.name!r} is not installed on the server"
        raise LoadFailed(version.model, version.number, happened) from error
    except Exception as error:
        raise LoadFailed(version.model, version.number, f"loading raised {type(error).__name__}") from error
    try:
        generator = generator_of(language, model, engine)
    except HandlerInvalid as error:  # where the files are is nobody's business
        happened = error.given["reason"].replace(f"the model {language.source.name!r}", "it")
        raise LoadFailed(version.model, version.number, happened) from error
    except Exception as error:
        raise LoadFailed(version.model, version.number, f"loading raised {type(error).__name__}") from error
    return LanguageModel(generator, _defaults(version, document))


def _defaults(version: ModelVersion, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what requests ask for that say nothing: what the model was logged with, then its signature's defaults."""
    configured = document["flavors"]["python_function"].get("config") or {}
    signature = version.card.signature
    specs = signature.params.params if signature is not None and signature.params is not None else []
    return {**configured, **{spec.name: plain(spec.default) for spec in specs}}


def _inputs(data: Any) -> list[Any]:
    """Return the texts of the only column of a frame, or the rows that came by a protocol of texts."""
    return data.iloc[:, 0].tolist() if isinstance(data, pd.DataFrame) else list(data)


def _collapsed(text: str | list[str]) -> Any:
    return [_collapsed(each) for each in text] if isinstance(text, list) else _SPACE.sub(" ", text).strip()
