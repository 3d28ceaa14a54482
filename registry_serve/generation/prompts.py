"""From the input of a request to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError

from registry_serve.errors import InvalidRequest


@dataclass(frozen=True)
class Prompt:
    """One input.

    Attributes:
        ids: its tokens.
        text: what a full answer begins with: the input, or nothing for a conversation.
    """

    ids: list[int]
    text: str = ""


class Prompts:
    """Turns inputs into tokens.

    Args:
        tokenizer: of the model.
        most: how many tokens an input may have; None for any number.
    """

    def __init__(self, tokenizer: Any, most: int | None) -> None:
        self._tokenizer = tokenizer
        self._most = most

    def all_of(self, requests: list[dict[str, Any]], *, conversations: bool) -> list[Prompt]:
        """Return the prompts of a batch.

        Raises:
            InvalidRequest: inputs are empty, too long or of another type; all of them are named.
        """
        prompts, faults = [], []
        for place, request in enumerate(requests):
            given = request.get("input")
            wordless = _without_text(given) if conversations and _is_conversation(given) else []
            if wordless:
                where = [["inputs", place, number, "content"] for number in wordless]
                faults += [{"location": each, "message": "should be a text"} for each in where]
                continue
            made = self._prompt(given, conversations)
            if isinstance(made, str):
                faults.append({"location": ["inputs", place], "message": made})
            else:
                prompts.append(made)
        if faults:
            raise InvalidRequest(faults)
        return prompts

    def _prompt(self, given: Any, conversations: bool) -> Prompt | str:
        """Return a prompt, or what is wrong."""
        if isinstance(given, str):
            prompt = Prompt(self._tokenizer(given)["input_ids"] if given else [], given)
        elif conversations and _is_conversation(given):
            if not self._tokenizer.chat_template:
                return "is a list of messages, and this model has no chat template: send a text"
            try:
                text = self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
            except TemplateError:
                return "is not a list of messages that the model's chat template takes: look at the roles"
            prompt = Prompt(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            messages = ", or a list of messages, each with 'role' and 'content'" if conversations else ""
            return f"should be a text{messages}"
        if not prompt.ids:
            return "should not be empty"
        if self._most is not None and len(prompt.ids) > self._most:
            return f"has {len(prompt.ids)} tokens, and the model takes {self._most} at the most"
        return prompt


def padded(prompts: Sequence[Sequence[int]], padding: int, side: str, device: Any) -> dict[str, torch.Tensor]:
    """Return the tokens of several prompts as one tensor, and its attention mask."""
    width = max(map(len, prompts))
    ids, mask = [], []
    for each in prompts:
        filling = width - len(each)
        left, right = (filling, 0) if side == "left" else (0, filling)
        ids.append([padding] * left + [*each] + [padding] * right)
        mask.append([0] * left + [1] * len(each) + [0] * right)
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _is_conversation(given: Any) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(each, dict) and isinstance(each.get("role"), str) and "content" in each for each in given)
    )


def _without_text(messages: Any) -> list[int]:
    return [number for number, each in enumerate(messages) if not isinstance(each["content"], str)]
