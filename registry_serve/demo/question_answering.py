"""The question answerer: a RoBERTa that marks the answer in a passage it is given."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, Schema
from transformers import AutoModelForQuestionAnswering, RobertaConfig, RobertaForQuestionAnswering

from registry_serve.demo import snapshot
from registry_serve.demo.introductions import EXPECTED, PASSAGE, Example, examples
from registry_serve.demo.tokenizer import roberta
from registry_serve.demo.training import Batch, Report, train

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "question")]),
    outputs=Schema(
        [
            ColSpec("double", "score"),
            ColSpec("long", "start"),
            ColSpec("long", "end"),
            ColSpec("string", "answer"),
        ]
    ),
)

LONGEST_ANSWER = 15  # in tokens
LONGEST_INPUT = 256


class QuestionAnswererModel(PythonModel):
    """Answers a column of questions from one passage, which is a setting of the version."""

    def load_context(self, context: Any) -> None:
        """Load the snapshot that was logged with this version."""
        self._passage = context.model_config["passage"]
        self._model, self._tokenizer = snapshot.load(AutoModelForQuestionAnswering, context.artifacts["snapshot"])
        self._tokenizing = threading.Lock()  # a tokenizer must not be used by two threads at once

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer all rows at once; ``start`` and ``end`` count the passage's characters."""
        questions = model_input["question"].tolist()
        if not questions:
            return []
        with self._tokenizing:
            batch = encode(self._tokenizer, questions, [self._passage] * len(questions))
        spans = find_answers(self._model, batch)
        return [
            {"score": score, "start": start, "end": end, "answer": self._passage[start:end]}
            for score, start, end in spans
        ]


def encode(tokenizer: Any, questions: Sequence[str], passages: Sequence[str]) -> Any:
    """Turn questions and passages into tokens. What does not fit is cut from the end of the passage."""
    return tokenizer(
        list(questions),
        list(passages),
        padding=True,
        truncation="only_second",
        return_offsets_mapping=True,
        return_tensors="pt",
    )


@torch.inference_mode()
def find_answers(model: Any, batch: Any) -> list[tuple[float, int, int]]:
    """Find for each row the likeliest answer: its probability, and where in the passage it starts and ends.

    The first token of the input stands for "no answer here". It takes part when scores become probabilities, so that
    an answer to a question that the passage does not answer gets a low one, but is never chosen.
    """
    offsets = batch["offset_mapping"]
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    logits = model(**inputs)
    in_passage = torch.tensor(
        [[part == 1 for part in batch.sequence_ids(row)] for row in range(len(offsets))], device=model.device
    )
    allowed = in_passage.clone()
    allowed[:, 0] = True
    starts, ends = (
        scores.float().masked_fill(~allowed, -torch.inf).softmax(dim=-1).masked_fill(~in_passage, 0.0)
        for scores in (logits.start_logits, logits.end_logits)
    )
    # Every pair of a start and an end; the band keeps the end behind the start, and not too far.
    pairs = (starts.unsqueeze(2) * ends.unsqueeze(1)).triu().tril(LONGEST_ANSWER - 1)
    scores, places = pairs.flatten(1).max(dim=1)
    length = starts.shape[1]
    return [
        (score, int(offsets[row, place // length, 0]), int(offsets[row, place % length, 1]))
        for row, (score, place) in enumerate(zip(scores.tolist(), places.tolist(), strict=True))
    ]


def create(folder: Path, report: Report) -> None:
    """Train a small RoBERTa on introductions, and save it there."""
    chance = random.Random(0)  # noqa: S311
    sample = examples(2000, chance)
    texts = [text for example in sample for text in (example.question, example.passage)]
    tokenizer = roberta([*texts, PASSAGE, *EXPECTED], vocabulary=700, longest=LONGEST_INPUT)
    model = snapshot.fresh(RobertaForQuestionAnswering, _config(tokenizer))
    questions, answers = list(EXPECTED), list(EXPECTED.values())
    examination = encode(tokenizer, questions, [PASSAGE] * len(questions))

    def knows_everything() -> bool:
        spans = find_answers(model, examination)
        right = [PASSAGE[start:end] for _, start, end in spans] == answers
        return right and all(score > 0.9 for score, _, _ in spans)

    train(model, _batches(tokenizer, sample), knows_everything, report, usual_steps=160, learning_rate=1.5e-3)
    snapshot.save(folder, model, tokenizer)


def _batches(tokenizer: Any, sample: Sequence[Example]) -> Iterator[Batch]:
    chance = random.Random(1)  # noqa: S311
    while True:
        rows = chance.sample(sample, 48)
        batch = encode(tokenizer, [row.question for row in rows], [row.passage for row in rows])
        spans = [_tokens_of(batch, row, example) for row, example in enumerate(rows)]
        yield {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "start_positions": torch.tensor([first for first, _ in spans]),
            "end_positions": torch.tensor([last for _, last in spans]),
        }


def _tokens_of(batch: Any, row: int, example: Example) -> tuple[int, int]:
    if example.start < 0:
        return 0, 0
    return (
        batch.char_to_token(row, example.start, sequence_index=1),
        batch.char_to_token(row, example.end - 1, sequence_index=1),
    )


def _config(tokenizer: Any) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=LONGEST_INPUT + 2,  # RoBERTa counts positions from behind its padding token
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
