"""vLLM as the engine, where it is installed: it knows most settings, and divides a model among GPUs itself.

It runs in processes of its own, which this one starts; a process that has ended cannot be started again from here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any

import torch
from transformers import GenerationConfig

from registry_serve.errors import HandlerInvalid
from registry_serve.generation import EngineFailed, EngineLost, Likelihood, RequestTooLarge, Settings, Tokens
from registry_serve.generation.generator import Generator, tell_of_what_is_not_done
from registry_serve.generation.language import Language

#: Names in Transformers, and those of the same setting here.
_NAMES = {"min_new_tokens": "min_tokens", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
_SHUTDOWN_S = 5.0


class VLLMEngine:
    """Answers many requests at a time, each as long as it needs.

    Attributes:
        name: ``vllm``.
        capacity: tokens that one request may have, prompt and answer together.

    Args:
        model: its name on the hub, or a folder.
        eos: tokens that end an answer.
        dtype: of the weights, such as ``float16``.
        trusted: whether the model's own code may run.
        tensor_parallel: GPUs that have a part of every layer each.
        options: further arguments of vLLM's engine.

    Raises:
        HandlerInvalid: vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        eos: Sequence[int],
        *,
        dtype: str,
        trusted: bool = False,
        tensor_parallel: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            needs = f"engine 'vllm' needs {error.name}, which is not installed: pip install vllm"
            raise HandlerInvalid("huggingface", needs) from error
        arguments = AsyncEngineArgs(
            model=model,
            dtype=dtype,
            skip_tokenizer_init=True,
            trust_remote_code=trusted,
            tensor_parallel_size=tensor_parallel,
            # Ray has the replica's GPUs in its accounts; the processes of the parts are children of this one.
            distributed_executor_backend="mp" if tensor_parallel > 1 else None,
            generation_config="vllm",
            **(options or {}),
        )
        self._eos = list(eos)
        self._names = count()
        self._answering = 0
        self._engine: Any = AsyncLLM.from_engine_args(arguments)  # takes the event loop that it is asked on first
        self.capacity = int(self._engine.model_config.max_model_len)

    def takes(self, settings: Settings) -> bool:
        """Say whether it can generate like this."""
        return settings.others.keys() <= _NAMES.keys()

    @property
    def lost(self) -> bool:
        """Whether its processes have ended."""
        return bool(self._engine.errored)

    def status(self) -> Mapping[str, Any]:
        """Return what it does, ready for JSON."""
        return {"engine": self.name, "answering": self._answering}

    async def submit(self, prompt: list[int], settings: Settings) -> AsyncGenerator[Tokens, None]:
        """Generate one answer; see :class:`registry_serve.generation.Engine`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if len(prompt) + settings.max_new_tokens > self.capacity:
            raise RequestTooLarge(len(prompt) + settings.max_new_tokens, self.capacity)
        name = f"request-{next(self._names)}"
        outputs = self._engine.generate({"prompt_token_ids": prompt}, self._sampling(settings), name)
        self._answering += 1
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield _told(output.outputs[0], frozenset(() if settings.ignore_eos else self._eos))
        except EngineDeadError as error:
            raise EngineLost("a process of vLLM has ended") from error
        except ValueError as error:
            raise EngineFailed("vLLM refuses the request") from error
        finally:
            self._answering -= 1

    def close(self) -> None:
        """End its processes."""
        self._engine.shutdown(timeout=_SHUTDOWN_S)

    def _sampling(self, settings: Settings) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature if settings.samples else 0.0,
            top_p=settings.top_p,
            top_k=settings.top_k or 0,
            seed=settings.seed,
            stop_token_ids=[] if settings.ignore_eos else self._eos,
            ignore_eos=settings.ignore_eos,
            logprobs=settings.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **{_NAMES[name]: value for name, value in settings.others.items()},
        )


def generator_with_vllm(language: Language) -> Generator:
    """Start vLLM for a model, on all GPUs that this process sees. Blocks, for a minute and longer.

    Raises:
        HandlerInvalid: vLLM is not installed, or the model has an encoder.
    """
    source = language.source
    if language.encodes:
        raise HandlerInvalid("huggingface", f"the model {source.name!r} has an encoder, which engine 'vllm' is not for")
    try:
        own: Any = GenerationConfig.from_pretrained(source.name)
    except OSError:  # it has none of its own
        own = GenerationConfig.from_model_config(source.config())
    tell_of_what_is_not_done(language, own)
    ends = language.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    engine = VLLMEngine(
        source.name,
        [ends] if isinstance(ends, int) else ends or [],
        dtype=str(source.precision.weights).removeprefix("torch."),
        trusted=source.trusted,
        tensor_parallel=max(1, torch.cuda.device_count()),
    )
    return Generator(language, [engine], own)


def _told(new: Any, eos: frozenset[int]) -> Tokens:
    ids = list(new.token_ids)
    if new.finish_reason not in (None, "stop", "length"):
        raise EngineFailed(f"vLLM ended the request: {new.finish_reason}")
    if new.finish_reason == "stop" and ids and ids[-1] in eos:
        ids.pop()
    if not new.logprobs:
        return Tokens(tuple(ids), new.finish_reason)
    own, likeliest = [], []
    for token, found in zip(ids, new.logprobs, strict=False):
        own.append(float(found[token].logprob))
        most = sorted(found.items(), key=lambda each: each[1].rank or 0)
        likeliest.append(tuple(Likelihood(each, float(value.logprob)) for each, value in most))
    return Tokens(tuple(ids), new.finish_reason, tuple(own), tuple(likeliest))
