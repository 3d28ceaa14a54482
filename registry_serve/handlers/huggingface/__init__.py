"""The default handler: models of the Hugging Face hub, or of a local folder, with Transformers.

Torch and Transformers are imported when a handler is built, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from registry_serve.errors import HandlerInvalid, InvalidRequest
from registry_serve.handlers.interface import ModelHandlerInterface

if TYPE_CHECKING:
    from registry_serve.generation.batches import TextGeneration
    from registry_serve.generation.generator import Generator
    from registry_serve.handlers.huggingface.embedding import FeatureExtraction

NAME = "huggingface"
_TASKS = ("text-generation", "feature-extraction")
_ENGINES = ("auto", "continuous", "static", "vllm")
_DIVIDED = ("auto", "continuous")


class HuggingFaceHandler(ModelHandlerInterface):
    """Generates text, or embeds texts.

    | task                 | input              | output                                                           |
    |----------------------|--------------------|------------------------------------------------------------------|
    | `text-generation`    | a text             | the text **with the prompt before it**, unless the parameter     |
    |                      |                    | `return_full_text` is false; encoder-decoders: the answer alone  |
    | `text-generation`    | a list of messages | the reply alone; needs a model with a chat template              |
    | `feature-extraction` | a text             | its embedding, a list of numbers: the mean over its tokens, or   |
    |                      |                    | what a model of sentence-transformers says about its own pooling |

    A message has a ``role`` and a ``content``. The parameters of text generation, with their defaults, are
    ``GenerationParameters``; with ``n`` above 1, each output is a list of texts. Feature extraction has no parameters.
    The model is on the GPU that torch sees, on all of them if there are several, else on the CPU.

    Args:
        task: what the model is for.
        model_name_or_path: its name on the hub, or a folder.
        model_dtype: of its weights: fp16, bf16 or fp32. On a CPU, fp16 becomes fp32.
        autocast_dtype: fp16 or bf16, for torch's automatic mixed precision; None for none.
        trust_remote_code: run Python code that comes with the model.
        engine: how a server generates: ``auto``, ``continuous``, ``static`` or ``vllm``; see
            ``docs/generation.md``.
        cache_tokens: tokens of all requests that continuous batching keeps in memory; as many as is sensible if not
            given.
        tensor_parallel: processes that each layer of the model is divided over, each with a GPU of its own where there
            are GPUs. A deployment starts them: give it to ``deployment_from_handler``.
        tokenizer_name_or_path: of its tokenizer, where that is another's.

    Raises:
        HandlerInvalid: one of these has no meaning, or the model cannot be had.
    """

    def __init__(
        self,
        *,
        task: str,
        model_name_or_path: str,
        model_dtype: str = "fp16",
        autocast_dtype: str | None = None,
        trust_remote_code: bool = False,
        engine: str = "auto",
        cache_tokens: int | None = None,
        tensor_parallel: int = 1,
        tokenizer_name_or_path: str | None = None,
    ) -> None:
        if task not in _TASKS:
            raise HandlerInvalid(NAME, f"task must be {' or '.join(_TASKS)}, and is {task!r}")
        if engine not in _ENGINES:
            raise HandlerInvalid(NAME, f"engine must be one of {', '.join(_ENGINES)}, and is {engine!r}")
        try:
            from registry_serve.generation.batches import TextGeneration
            from registry_serve.generation.generator import generator_of
            from registry_serve.generation.language import Language
            from registry_serve.generation.precision import Precision
            from registry_serve.generation.pretrained import Source
            from registry_serve.handlers.huggingface.embedding import FeatureExtraction
        except ImportError as error:
            needs = f"it needs {error.name}, which is not installed: pip install 'registry-serve[transformers]'"
            raise HandlerInvalid(NAME, needs) from error
        if tensor_parallel > 1 and (task != "text-generation" or engine not in _DIVIDED):
            kinds = " or ".join(_DIVIDED)
            raise HandlerInvalid(NAME, f"tensor_parallel is for text-generation, with the engine {kinds}")
        source = Source(
            model_name_or_path, Precision.of(model_dtype, autocast_dtype), trust_remote_code, tokenizer_name_or_path
        )
        self._generator: Callable[[], Generator] | None = None
        self._model: TextGeneration | FeatureExtraction | None = None
        if task == "feature-extraction":
            self._model = FeatureExtraction(source)
            return
        language = Language(source)
        if tensor_parallel > 1:
            from registry_serve.generation.ranks import divided

            generator = divided(language, tensor_parallel, cache_tokens)
            self._generator = lambda: generator
            return
        if engine == "vllm":
            from registry_serve.generation.vllm import generator_with_vllm

            self._generator = partial(generator_with_vllm, language)
            return
        weights = language.weights()
        self._model = TextGeneration(language, weights)
        self._generator = partial(generator_of, language, weights, engine, cache_tokens)

    def start_engine(self) -> Generator | None:
        """Start the engine that a server generates with; None where the task is no generation.

        Afterwards ``predict`` must not be called any more.
        """
        return None if self._generator is None else self._generator()

    def predict(self, model_requests: list[dict[str, Any]]) -> list[Any]:
        """Answer a batch. Requests with other parameters than their neighbours' are computed apart.

        Raises:
            InvalidRequest: an input or a parameter is wrong; nothing has been computed.
        """
        return self._whole.answer(model_requests)

    def predict_stream(self, input: Any, parameters: dict[str, Any] | None = None) -> Iterator[str]:  # noqa: A002
        """Generate one text piece by piece; together the pieces are what ``predict`` returns.

        Closing the iterator ends the generation.

        Raises:
            InvalidRequest: as ``predict``; or the task is no generation.
        """
        stream = getattr(self._whole, "stream", None)
        if stream is None:
            raise InvalidRequest([{"location": [], "message": "asks for a stream, and this model gives embeddings"}])
        pieces: Iterator[str] = stream(input, parameters or {})
        return pieces

    @property
    def _whole(self) -> TextGeneration | FeatureExtraction:
        if self._model is None:
            raise HandlerInvalid(
                NAME, "its model belongs to an engine (tensor_parallel, vllm), and answers through its engine only"
            )
        return self._model
