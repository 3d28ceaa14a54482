"""What a model generates by itself: the oracle for everything that is served."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@cache
def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def greedy(folder, prompt, new_tokens):
    """The likeliest answer to a text or a conversation, without it."""
    model, tokenizer = loaded(folder)
    if isinstance(prompt, list):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)[0]
    before = tokenizer.decode(ids[0], skip_special_tokens=True)
    return tokenizer.decode(made, skip_special_tokens=True).removeprefix(before)
