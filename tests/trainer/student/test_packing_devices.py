"""Packed documents have the values of each alone: every way, on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.trainer.devices import DEVICES
from trainer.data.collate import Attention, lay_out
from trainer.student import document_attention
from trainer.student.student import Student

VOCAB = 500
LENGTHS = (70, 1, 129, 33, 64)
WAYS: dict[str, tuple[Attention, str]] = {
    "documents": ("documents", document_attention.DOCUMENT_ATTENTION),
    "one by one": ("documents", document_attention.DOCUMENT_ATTENTION),
    "masked": ("documents", document_attention.DOCUMENT_ATTENTION),
    "mask": ("mask", "sdpa"),
    "additive": ("additive", "eager"),
    "positions": ("positions", "sdpa"),
    "layer_masks": ("layer_masks", "sdpa"),
    "windows": ("positions", "sdpa"),
}
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


def make_student(way: str) -> Student:
    torch.manual_seed(1)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if way == "windows":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)  # distributions that are not flat
    attention, implementation = WAYS[way]
    document_attention.use_document_attention(model)
    model.set_attn_implementation(implementation)
    student = Student(model, VOCAB)
    student.attention = attention
    return student.eval()


def values(student: Student, lengths: tuple[int, ...], tokens: Tensor, *, bf16: bool) -> Tensor:
    """Return log-probabilities of all tokens but each document's first."""
    device = next(student.parameters()).device
    packed = lay_out(tokens.numpy().astype(np.int32), np.array(lengths), student.attention)
    moved = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in vars(packed).items()
    }
    starts = np.cumsum(lengths) - np.array(lengths)
    at = torch.tensor([s + i for s, n in zip(starts, lengths, strict=True) for i in range(1, n)])
    targets = tokens[at].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        states = student.states(type(packed)(**moved))[(at - 1).to(device)]
        return student.label_logprobs(states, targets[:, None], targets).target_logp


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_packed_equals_alone(
    device: str, way: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, and gradients of all weights, against each document alone in eager attention, fp32.

    On a GPU, `documents` is flash attention in bf16 where torch has it for variable lengths.
    """
    if way in ("one by one", "masked"):  # what a GPU takes where flash attention is not
        monkeypatch.setattr(document_attention, "varlen_attn", None)
        tokens = 1 if way == "one by one" else 10**6
        monkeypatch.setattr(document_attention, "MASKED_TOKENS", tokens)
    tokens = torch.randint(1, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    plain = make_student(way)
    plain.model.set_attn_implementation("eager")
    plain.attention = "positions"
    alone = torch.cat(
        [
            values(plain, (len(ids),), ids, bf16=False)
            for ids in torch.split(tokens, list(LENGTHS))
            if len(ids) > 1
        ]
    )
    student = make_student(way).to(device)
    packed = values(student, LENGTHS, tokens, bf16=precision == "bf16")
    assert packed.dtype == torch.float32
    limit = TOLERANCE[precision]
    assert (packed.cpu() - alone).norm() < limit * alone.norm()
    grads = [
        torch.autograd.grad(x.mean(), [*of.parameters()])
        for x, of in ((packed, student), (alone, plain))
    ]
    for found, expected in zip(*grads, strict=True):
        assert (found.cpu() - expected).norm() < 3 * limit * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_flash_attention_runs_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 it is called once per layer; in float32, which it lacks, never."""
    real = document_attention.varlen_attn
    assert real is not None, "torch 2.11 or later has it"
    calls: list[int] = []

    def noted(*args: Tensor, **settings: object) -> Tensor:
        calls.append(len(args[0]))
        result: Tensor = real(*args, **settings)
        return result

    monkeypatch.setattr(document_attention, "varlen_attn", noted)
    student = make_student("documents").to("cuda")
    tokens = torch.arange(sum(LENGTHS)) % VOCAB
    values(student, LENGTHS, tokens, bf16=False)
    assert calls == []
    values(student, LENGTHS, tokens, bf16=True)
    assert calls == [sum(LENGTHS)] * 2
