"""Tokenizers for the small models, trained on their own texts and saved the way Transformers saves them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

START, PADDING, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"


def sentences(texts: Iterable[str], *, vocabulary: int, longest: int) -> Any:
    """Train a tokenizer for sentence to sentence models: whole words where they are known, and an end mark."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    # Punctuation apart, so that a sentence without its full stop begins with the same pieces.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = [PADDING, END, UNKNOWN]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[(END, end)])
    return _saveable(tokenizer, longest, pad_token=PADDING, eos_token=END, unk_token=UNKNOWN)


def roberta(texts: Iterable[str], *, vocabulary: int, longest: int) -> Any:
    """Train a tokenizer of RoBERTa's kind: bytes, and pairs of texts set apart by two separators."""
    special = [START, PADDING, END, UNKNOWN]
    tokenizer = _byte_pairs(texts, vocabulary, special)
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, special.index(END)),
        (START, special.index(START)),
        trim_offsets=True,
        add_prefix_space=False,
    )
    names = {"bos_token": START, "cls_token": START, "eos_token": END, "sep_token": END}
    return _saveable(tokenizer, longest, pad_token=PADDING, unk_token=UNKNOWN, **names)


def causal(texts: Iterable[str], *, vocabulary: int, longest: int, chat_template: str) -> Any:
    """Train a tokenizer of the kind that language models have: bytes, and a template for conversations."""
    tokenizer = _byte_pairs(texts, vocabulary, [PADDING, END])
    saveable = _saveable(tokenizer, longest, pad_token=PADDING, eos_token=END, padding_side="left")
    saveable.chat_template = chat_template
    return saveable


def _byte_pairs(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that no text is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _saveable(tokenizer: Tokenizer, longest: int, **settings: str) -> Any:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=longest,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **settings,
    )
