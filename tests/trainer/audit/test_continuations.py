from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from schemas import IdentityError, SoftshardsError, open_label_set
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.conftest import World
from trainer.audit.continuations import Speaker


def silent(done: int) -> None:
    assert done > 0


def prefixes(world: World, *lengths: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(1, world.vocab_size, size).astype(np.int32) for size in lengths]


@torch.no_grad()
def by_hand(model: LlamaForCausalLM, prefix: np.ndarray, length: int, vocab: int) -> list[int]:
    ids = prefix.tolist()
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1, :vocab].argmax()))
    return ids[len(prefix) :]


def test_greedy_equals_an_argmax_at_a_time(world: World, tmp_path: Path) -> None:
    """Whatever the checkpoint's own settings; its head is padded past the tokenizer."""
    path = tmp_path / "model"
    shutil.copytree(world.student, path)
    own = {"do_sample": True, "repetition_penalty": 3.0, "eos_token_id": list(range(290))}
    (path / "generation_config.json").write_text(json.dumps(own))
    given, lengths = prefixes(world, 3, 5, 3, 3, 1, 5), [4, 2, 9, 1, 6, 12]
    labels = open_label_set(world.labels)
    found = Speaker(path, labels, "fp32").continue_greedily(given, lengths, silent)
    model = LlamaForCausalLM.from_pretrained(path).eval()
    for prefix, length, ids in zip(given, lengths, found):
        assert ids.tolist() == by_hand(model, prefix, length, world.vocab_size)


def test_padding_of_the_head_is_never_said(world: World, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(world.student, path)
    model = LlamaForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.lm_head.weight[world.vocab_size :] *= 100
    model.save_pretrained(path)
    found = Speaker(path, open_label_set(world.labels), "fp32").continue_greedily(
        prefixes(world, 4, 4), [20, 20], silent
    )
    assert all(ids.max() < world.vocab_size for ids in found)


@torch.no_grad()
def test_log_likelihoods_equal_float64(world: World) -> None:
    given = prefixes(world, 9, 4, 9, 2)
    speaker = Speaker(world.student, open_label_set(world.labels), "fp32")
    found = speaker.log_likelihoods(given, silent)
    model = LlamaForCausalLM.from_pretrained(world.student).double().eval()
    for ids, value in zip(given, found):
        row = torch.tensor(ids.tolist())
        logp = model(row[None]).logits[0, :-1, : world.vocab_size].log_softmax(-1)
        assert value == pytest.approx(float(logp.gather(1, row[1:, None]).sum()), abs=1e-4)


def test_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    size = make_tokenizer(tmp_path, vocab_size=280, text=["zebras quiz foxy jumps"])
    make_model(tmp_path, vocab_size=size)
    with pytest.raises(IdentityError, match="tokenizer is not the teacher's"):
        Speaker(tmp_path, open_label_set(world.labels), "fp32")


def test_broken_weights_are_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(world.student, path)
    model = LlamaForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(path)
    with pytest.raises(SoftshardsError, match="not finite"):
        Speaker(path, open_label_set(world.labels), "fp32")


def test_too_long_for_the_context_is_refused(world: World) -> None:
    speaker = Speaker(world.student, open_label_set(world.labels), "fp32")
    speaker.require_context(256)
    with pytest.raises(SoftshardsError, match="257 tokens, and the model has 256 positions"):
        speaker.require_context(257)
