"""A snapshot: a folder with a model's weights and tokenizer, as Transformers saves and loads them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

_one_at_a_time = threading.Lock()  # seeds and progress bars belong to the whole process


def fresh(architecture: Any, config: Any) -> Any:
    """Return a model with random weights, the same ones every time."""
    with _one_at_a_time, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architecture(config)


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Save both to the folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(auto_class: Any, folder: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer, the model ready to predict on the accelerator this process has, if any."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _one_at_a_time:
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a server's log is no place for them
        try:
            model = auto_class.from_pretrained(folder, dtype=torch.float32)
        finally:
            if bars:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)
