"""What a call may ask of the generation, by the names that DeepSpeed-MII gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from registry_serve.errors import InvalidRequest, UnknownArgument
from registry_serve.generation.parameters import AS_MANY_AS_FIT


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else value


class GenerateParamsConfig(BaseModel):
    """The options of one call. None counts as not given.

    Attributes:
        max_length: tokens of prompt and answer together; the deployment's, or else the model's context, if not given.
        max_new_tokens: tokens of the answer; no limit of its own if not given. Where both are given, both hold.
        min_new_tokens: tokens of the answer before the model may end it.
        do_sample: draw tokens by chance; else take the likeliest.
        top_p: draw among the likeliest tokens that have so much of the probability together.
        top_k: draw among so many of the likeliest tokens.
        temperature: divides the logits before that.
        stop: a text, or several: the answer ends before the first that comes up.
        ignore_eos: go on where the model would end the answer.
        return_full_text: put the prompt before the answer.
        seed: the same seed gives the same answer.
        stream: of no meaning: calls with a ``streaming_fn`` stream.
        prompt_length: of no meaning: it is counted.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_length: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    do_sample: bool = True
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int | None = Field(None, gt=0)
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_several)] = ()
    ignore_eos: bool = False
    return_full_text: bool = False
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    prompt_length: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> GenerateParamsConfig:
        """Check the options of a call.

        Raises:
            UnknownArgument: there is no option of that name.
            InvalidRequest: a value has no meaning.
        """
        for name in given:
            if name not in cls.model_fields:
                raise UnknownArgument(name, list(cls.model_fields))
        try:
            return cls.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise InvalidRequest(
                [{"location": each["loc"], "message": _message(each["msg"])} for each in found]
            ) from None

    def parameters(self, max_length: int | None) -> dict[str, Any]:
        """Return what the handler is asked for.

        Args:
            max_length: of the deployment.
        """
        asked = self.model_dump(include={"do_sample", "ignore_eos", "return_full_text", "top_p"})
        optional = {
            "max_length": self.max_length or max_length,
            "min_new_tokens": self.min_new_tokens or None,
            "stop": list(self.stop) or None,
            "seed": self.seed,
        }
        return {
            **asked,
            **{name: value for name, value in optional.items() if value is not None},
            "max_new_tokens": self.max_new_tokens or AS_MANY_AS_FIT,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_k": self.top_k or 0,  # a model's own is not used
        }


def prompts_of(given: Any) -> list[str]:
    """Return the prompts of a call: a text, or a list of texts.

    Raises:
        InvalidRequest: it is neither, or there is none.
    """
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise InvalidRequest([{"location": ["prompts"], "message": "should be a text, or a list of texts"}])
    return list(prompts)


def _message(said: str) -> str:
    return said.replace("Input should", "should")
