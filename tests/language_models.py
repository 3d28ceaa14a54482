"""Language models of random weights, made in a moment; each function saves one in a folder and returns its path."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT = 64
TEXTS = [
    "The river rose during the night.",
    "A boat came down the river.",
    "Größe, naïve, 日本語 and 🙂 are words.",
] * 20
CHAT = "{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}<assistant>"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several are slower for models as small as these, above all where others compute as well. Import it to use it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def byte_tokenizer(**special):
    """Bytes, as GPT-2 has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **special)


def sentence_tokenizer(ending="</s>", **special):
    """Pieces that bring the space before them, as Llama and T5 have them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if ending:
        end = [(ending, tokenizer.token_to_id(ending))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {ending}", special_tokens=end)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **special)


def saved(folder, tokenizer, model):
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def gpt2(folder):
    """Positions are learned, nothing to pad with, no chat template."""
    torch.manual_seed(7)
    tokenizer = byte_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    return saved(folder, tokenizer, GPT2LMHeadModel(config))


def llama(folder, context=CONTEXT):
    """Positions are rotations, pieces bring their space, a chat template."""
    torch.manual_seed(3)
    tokenizer = sentence_tokenizer(ending="")
    tokenizer.chat_template = CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=context,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return saved(folder, tokenizer, LlamaForCausalLM(config))


def t5(folder):
    """An encoder and a decoder."""
    torch.manual_seed(5)
    tokenizer = sentence_tokenizer(model_max_length=CONTEXT)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_factor=5.0,
        **sizes,
    )
    return saved(folder, tokenizer, T5ForConditionalGeneration(config))
