"""Makes two small embedding models of the same word vectors, in a few seconds and without a download.

The vectors are learnt from the sentences in ``sentences.txt``: words that occur in the same sentences get like ones.
"""

import re
from itertools import permutations
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SIZE = 16


def word_vectors(sentences: list[str]) -> tuple[list[str], np.ndarray]:
    """Return words and their vectors, shape (words, SIZE)."""
    texts = [re.findall(r"\w+", sentence.lower()) for sentence in sentences]
    words = sorted({word for text in texts for word in text})
    place = {word: number for number, word in enumerate(words)}
    together = np.eye(len(words))
    for text in texts:
        for one, other in permutations(set(text), 2):
            together[place[one], place[other]] += 1
    # How much oftener than by chance: words that are in every sentence say nothing.
    often = together.sum(0)
    surprise = np.maximum(np.log(together * together.sum() / np.outer(often, often) + 1e-9), 0)
    left, strength, _ = np.linalg.svd(surprise)
    vectors = left[:, :SIZE] * np.sqrt(strength[:SIZE])
    # A singular vector may come out with either sign.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), range(SIZE)])
    return words, vectors.astype(np.float32)


def save_for_the_own_handler(words: list[str], vectors: np.ndarray) -> None:
    np.savez(HERE / "embeddings" / "vectors.npz", words=np.array(words), vectors=vectors)


def save_for_the_default_handler(words: list[str], vectors: np.ndarray) -> None:
    """Save a BERT without layers: what is left of it are its word vectors."""
    folder = HERE / "embeddings" / "bert"
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    saveable = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    saveable.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=SIZE,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=SIZE,
        max_position_embeddings=128,
    )
    model = BertModel(config)
    own = {name: values * 0 for name, values in model.embeddings.state_dict().items() if name.endswith("weight")}
    own["word_embeddings.weight"][2:] = own["word_embeddings.weight"].new_tensor(vectors)
    own["LayerNorm.weight"] += 1
    model.embeddings.load_state_dict(own, strict=False)
    model.save_pretrained(folder)


if __name__ == "__main__":
    learnt = word_vectors((HERE / "sentences.txt").read_text(encoding="utf-8").splitlines())
    save_for_the_own_handler(*learnt)
    save_for_the_default_handler(*learnt)
    print(f"Two models of {len(learnt[0])} words are in the folder embeddings")
