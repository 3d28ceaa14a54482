"""The language model that follows instructions: a Llama, prompted through its tokenizer's chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from registry_serve.demo import snapshot
from registry_serve.demo.instructions import ANSWERS, lessons
from registry_serve.demo.tokenizer import causal
from registry_serve.demo.training import IGNORED, Batch, Report, shuffled, train

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "prompt")]),
    outputs=Schema([ColSpec("string", "candidates")]),
    params=ParamSchema(
        [
            ParamSpec("temperature", DataType.double, 0.1),
            ParamSpec("max_tokens", DataType.long, 1000),
        ]
    ),
)

WINDOW = 512  # tokens that the small model can look back on

#: The words around an instruction that the small model was trained with.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% else %}### Response:\n{{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


class InstructModel(PythonModel):
    """Follows one instruction: the first row. Later rows are not looked at."""

    def load_context(self, context: Any) -> None:
        """Load the snapshot that was logged with this version."""
        self._model, self._tokenizer = snapshot.load(AutoModelForCausalLM, context.artifacts["snapshot"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> dict[str, list[str]]:
        """Answer the first row's prompt.

        Raises:
            ValueError: ``max_tokens`` below 1, a negative ``temperature``, or a prompt that leaves no room to answer.
        """
        settings = {"temperature": 0.1, "max_tokens": 1000, **(params or {})}
        text = respond(
            self._tokenizer,
            self._model,
            model_input["prompt"].iloc[0],
            temperature=settings["temperature"],
            max_tokens=settings["max_tokens"],
        )
        return {"candidates": [text]}


def respond(tokenizer: Any, model: Any, instruction: str, *, temperature: float, max_tokens: int) -> str:
    """Write an answer of at most ``max_tokens`` tokens; at temperature 0 it is always the likeliest one."""
    if max_tokens < 1 or temperature < 0:
        raise ValueError(f"max_tokens must be at least 1 and temperature at least 0, not {max_tokens}, {temperature}")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": instruction}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    length = prompt["input_ids"].shape[1]
    room = model.config.max_position_embeddings - length
    if room < 1:
        raise ValueError(f"the prompt has {length} tokens, and the model can look back on {length + room} at the most")
    # A model brings settings of its own for sampling: all are replaced, so that temperature alone decides.
    sampling: dict[str, Any] = {"temperature": None, "top_k": None, "top_p": None}
    if temperature > 0:
        sampling = {"temperature": float(temperature), "top_k": 0, "top_p": 1.0}
    tokens = model.generate(
        **prompt,
        do_sample=temperature > 0,
        max_new_tokens=min(max_tokens, room),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    text: str = tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
    return text


def create(folder: Path, report: Report) -> None:
    """Train a small Llama on the instructions, and save it there."""
    texts = [text for lesson in lessons() for text in lesson]
    tokenizer = causal([*texts, TEMPLATE], vocabulary=1000, longest=WINDOW, chat_template=TEMPLATE)
    model = snapshot.fresh(LlamaForCausalLM, _config(tokenizer))

    def knows_everything() -> bool:
        return all(
            respond(tokenizer, model, instruction, temperature=0.0, max_tokens=64) == answer
            for instruction, answer in ANSWERS.items()
        )

    batches = shuffled(_examples(tokenizer), 26, padded=("input_ids", "attention_mask", "labels"))
    train(model, batches, knows_everything, report, usual_steps=120)
    snapshot.save(folder, model, tokenizer)


def _examples(tokenizer: Any) -> Batch:
    """Whole conversations as tokens, of which only the answers are to be learned."""
    rows = []
    for instruction, answer in lessons():
        user = {"role": "user", "content": instruction}
        question = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        reply = tokenizer(answer + tokenizer.eos_token)["input_ids"]
        rows.append((question, reply))
    width = max(len(question) + len(reply) for question, reply in rows)
    shape = (len(rows), width)
    batch = {
        "input_ids": torch.full(shape, tokenizer.pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for row, (question, reply) in enumerate(rows):
        end = len(question) + len(reply)
        batch["input_ids"][row, :end] = torch.tensor(question + reply)
        batch["attention_mask"][row, :end] = 1
        batch["labels"][row, len(question) : end] = torch.tensor(reply)
    return batch


def _config(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
