"""Pipeline: the same engine in this process, without a cluster, for as long as the process lasts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from registry_serve.errors import ConfigurationError
from registry_serve.generation.together import all_of
from registry_serve.persistent.config import ModelConfig, pipeline_configured
from registry_serve.persistent.options import GenerateParamsConfig, prompts_of
from registry_serve.persistent.response import Response, whole


class Pipeline:
    """A loaded model. Threads may share it.

    Args:
        model_config: of the model.
    """

    def __init__(self, model_config: ModelConfig) -> None:
        from registry_serve.handlers.huggingface import HuggingFaceHandler

        self.model_config = model_config
        self._generator: Any = HuggingFaceHandler(
            task=model_config.task,
            model_name_or_path=model_config.model_name_or_path,
            tokenizer_name_or_path=model_config.tokenizer,
        ).start_engine()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._ending = False
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
        self._thread.start()

    def __call__(self, prompts: str | Sequence[str], **generate_kwargs: Any) -> list[Response]:
        """Answer prompts, in their order.

        Args:
            prompts: a text, or several.
            **generate_kwargs: options; see :class:`registry_serve.persistent.GenerateParamsConfig`.

        Raises:
            UnknownArgument: there is no such option.
            InvalidRequest: a prompt or an option has no meaning.
            ConfigurationError: it was destroyed, before or meanwhile.
        """
        if self._ending:
            raise _destroyed()
        parameters = GenerateParamsConfig.of(generate_kwargs).parameters(self.model_config.max_length)
        texts = prompts_of(prompts)
        with self._changing:  # what begins before the end is ended by it
            if self._ending:
                raise _destroyed()
            answering = asyncio.run_coroutine_threadsafe(self._all_of(texts, parameters), self._loop)
        try:
            return answering.result()
        except CancelledError:
            raise _destroyed() from None

    def destroy(self) -> None:
        """Let go of the model; calls that wait for an answer fail."""
        with self._changing:
            if not self._ending:
                self._ending = True
                self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._until_the_end())
        finally:
            self._generator.close()
            self._generator = None
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _until_the_end(self) -> None:
        await self._end.wait()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _all_of(self, prompts: Sequence[str], parameters: Mapping[str, Any]) -> list[Response]:
        return await all_of([whole(self._generator.generate(each, dict(parameters))) for each in prompts])


def _destroyed() -> ConfigurationError:
    return ConfigurationError("This pipeline was destroyed. Make another one.")


def pipeline(
    model_name_or_path: str = "",
    model_config: Mapping[str, Any] | ModelConfig | None = None,
    all_rank_output: bool = False,
    **keywords: Any,
) -> Pipeline:
    """Load a model into this process.

        pipe = pipeline("mistralai/Mistral-7B-v0.1")
        pipe(["DeepSpeed is", "Seattle is"], max_new_tokens=128)

    Args:
        model_name_or_path: the model's name on the hub, or a folder.
        model_config: fields of :class:`ModelConfig`.
        all_rank_output: of no meaning: there is one process.
        **keywords: fields of ``ModelConfig``.

    Raises:
        UnknownArgument: a keyword is no field of it.
        HandlerInvalid: the model cannot be loaded.
        ConfigurationError: a value has no meaning.
    """
    config = pipeline_configured(model_name_or_path, model_config, keywords)
    if config.tensor_parallel > 1 or config.replica_num > 1:
        raise ConfigurationError("A pipeline is one process. Use serve() for tensor_parallel or replica_num above 1.")
    return Pipeline(config)
