"""The translator: a T5, told what to do by the words before the sentence, as T5 has it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, Schema
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from registry_serve.demo import snapshot
from registry_serve.demo.phrase_book import PHRASES, spellings
from registry_serve.demo.tokenizer import sentences as tokenizer_for_sentences
from registry_serve.demo.training import IGNORED, Report, shuffled, train

LANGUAGES = {"en": "English", "de": "German", "fr": "French"}


class TranslationModel(PythonModel):
    """Translates a column of sentences. The languages and the column's name are the version's own settings."""

    def load_context(self, context: Any) -> None:
        """Load the snapshot that was logged with this version."""
        settings = context.model_config
        self._column = settings["input_column"]
        self._task = task(settings["source_language"], settings["target_language"])
        self._model, self._tokenizer = snapshot.load(AutoModelForSeq2SeqLM, context.artifacts["snapshot"])
        self._tokenizing = threading.Lock()  # a tokenizer must not be used by two threads at once

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        """Translate all rows at once."""
        sentences = [self._task + sentence for sentence in model_input[self._column]]
        if not sentences:
            return []
        with self._tokenizing:
            batch = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        translations = generate(self._model, batch)
        return [
            {"translation_text": text} for text in self._tokenizer.batch_decode(translations, skip_special_tokens=True)
        ]


def signature(input_column: str) -> ModelSignature:
    """Say what a version whose input column has that name takes and gives."""
    return ModelSignature(
        inputs=Schema([ColSpec("string", input_column)]), outputs=Schema([ColSpec("string", "translation_text")])
    )


def task(source: str, target: str) -> str:
    """Return the words that T5 was trained to find before a sentence."""
    return f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: "


def generate(model: Any, batch: Any) -> torch.Tensor:
    """Translate tokens, always taking the likeliest next piece."""
    tokens: torch.Tensor = model.generate(**batch.to(model.device), max_new_tokens=128, num_beams=1, do_sample=False)
    return tokens


def create(folder: Path, report: Report) -> None:
    """Train a small T5 on the phrase book, both languages in one model, and save it there."""
    pairs = [
        (task("en", target) + spelling, getattr(phrase, target))
        for phrase in PHRASES
        for target in ("de", "fr")
        for spelling in spellings(phrase.en)
    ]
    texts = [text for pair in pairs for text in pair]
    tokenizer = tokenizer_for_sentences(texts, vocabulary=1200, longest=128)
    model = snapshot.fresh(T5ForConditionalGeneration, _config(tokenizer))
    sources, targets = _tensors(tokenizer, pairs)

    def knows_everything() -> bool:
        wanted = [target for _, target in pairs]
        found = tokenizer.batch_decode(generate(model, sources), skip_special_tokens=True)
        return bool(found == wanted)

    examples = {**sources, "labels": targets}
    batches = shuffled(examples, 90, padded=("input_ids", "attention_mask"))
    train(model, batches, knows_everything, report, usual_steps=120)
    snapshot.save(folder, model, tokenizer)


def _config(tokenizer: Any) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _tensors(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[Any, torch.Tensor]:
    sources = tokenizer([source for source, _ in pairs], padding=True, return_tensors="pt")
    targets = tokenizer([target for _, target in pairs], padding=True, return_tensors="pt")
    labels: torch.Tensor = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORED)
    return sources, labels
