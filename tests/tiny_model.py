"""A tiny tokenizer and a tiny random Llama: small enough for any test, real for every library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = [
    "the cat sat on the mat and looked at the dog",
    "a dog ran after the cat, but the cat was faster",
    "labels are made once and many students learn from them",
    "a student that sees the whole distribution learns more from every token",
    "the tail is the mass outside the top of the distribution",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<eos>"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tokenizer(
    path: Path,
    vocab_size: int = 300,
    text: list[str] = TEXT,
    chat_template: str | None = None,
) -> int:
    """Train a byte-level BPE tokenizer, save it, return its length."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = chat_template
    fast.save_pretrained(path)
    return len(fast)


def make_model(
    path: Path, *, vocab_size: int, layers: int = 2, seed: int = 0, **config: Any
) -> None:
    """Save a random Llama, sharp enough that its distributions are not flat."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,  # heads of 32: vLLM on a CPU knows no smaller ones
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "eos_token_id": 0,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**(settings | config))).save_pretrained(path)
