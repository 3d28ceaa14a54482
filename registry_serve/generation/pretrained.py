"""Loading with Transformers: configuration, tokenizer and weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer

from registry_serve.errors import HandlerInvalid
from registry_serve.generation.precision import Precision

#: Tokenizers that know no limit say a number with thirty digits.
_NO_LIMIT = 10**9
_LONGEST_REASON = 200
_TRUST = "trust_remote_code"


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and how it is loaded.

    Attributes:
        name: on the hub, or a folder.
        precision: of its weights.
        trusted: whether its own code may run.
        tokenizer_name: the same for its tokenizer, where that is not with the weights.
    """

    name: str
    precision: Precision
    trusted: bool
    tokenizer_name: str | None = None

    def config(self) -> Any:
        """Load the configuration."""
        return self._load(self._config)

    def tokenizer(self) -> Any:
        """Load the tokenizer; it has a token to pad with."""
        named = self if self.tokenizer_name is None else replace(self, name=self.tokenizer_name)
        tokenizer = named._load(AutoTokenizer.from_pretrained)
        if tokenizer.pad_token_id is None:
            # Padding is masked: any token will do.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer

    def model(self, kind: Any, **options: Any) -> Any:
        """Load the weights with one of Transformers' Auto classes, onto the device, or spread over several GPUs.

        Args:
            kind: the class.
            **options: further keywords of its ``from_pretrained``; a ``distributed_config`` says itself where to.
        """
        if "distributed_config" not in options:
            several = self.precision.device == "cuda" and torch.cuda.device_count() > 1
            options["device_map"] = "auto" if several else self.precision.device
        return self._load(kind.from_pretrained, dtype=self.precision.weights, **options).eval()

    def document(self, path: str) -> Any | None:
        """Return one of the model's JSON files; None if it has none of that path.

        Raises:
            HandlerInvalid: the hub does not say whether it has one.
        """
        folder = Path(self.name)
        try:
            file = folder / path if folder.is_dir() else Path(hf_hub_download(self.name, path))
            return json.loads(file.read_text(encoding="utf-8"))
        except LocalEntryNotFoundError as error:  # also both of those below
            # Something that is no path: the hub has said before that there is no such file.
            if try_to_load_from_cache(self.name, path) is not None:
                return None
            reason = (
                f"may have a file {path} that the cache has not, and the hub does not answer; start once where it does "
                "answer, or let model_name_or_path name a folder with all files of the model"
            )
            raise self._invalid(reason) from error
        except (EntryNotFoundError, FileNotFoundError):
            return None

    def _config(self, name: str, **options: Any) -> Any:
        folder = Path(name)
        if folder.is_absolute() or folder.is_dir():
            # Transformers guesses what an empty folder is for, and asks the hub for one that is not there.
            (folder / "config.json").stat()
        return AutoConfig.from_pretrained(name, **options)

    def _load(self, load: Callable[..., Any], **options: Any) -> Any:
        try:
            return load(self.name, trust_remote_code=self.trusted, **options)
        except OSError as error:
            reason = (
                "is neither a folder with a model nor one that the Hugging Face hub gives out here; look at the name, "
                f"the network, and HF_TOKEN for private models ({_said(error)})"
            )
            raise self._invalid(reason) from error
        except ValueError as error:
            if _TRUST in str(error):
                reason = f"brings Python code of its own; say {_TRUST}: true if you know it and trust it"
                raise self._invalid(reason) from error
            raise self._invalid(f"cannot be loaded: {_said(error)}") from error

    def _invalid(self, reason: str) -> HandlerInvalid:
        return HandlerInvalid("huggingface", f"the model {self.name!r} {reason}")


def limits(config: Any, tokenizer: Any) -> list[int]:
    """Return how many tokens a model takes, as its configuration and then as its tokenizer say, if they do."""
    text = config.get_text_config()
    configured = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return [each for each in (configured, tokenizer.model_max_length) if each and each < _NO_LIMIT]


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".")
