"""LoRA: the trained parameters, the saved files, and a merged model that is a plain one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.train.loop import train


@pytest.mark.slow
def test_adapters_are_trained_merged_and_saved(world: World, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lora_r": 4, "lr": 1e-2, "epochs": 4, "save_every": 5}
    run = tmp_path / "run"
    train(config(world, run, **settings, keep_best=True, eval_labels=world.labels))
    lines = log(run)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    before, after = (
        load_file(world.student / "model.safetensors"),
        load_file(run / "final" / "model.safetensors"),
    )
    assert before.keys() == after.keys()  # a plain checkpoint, without adapter names
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    # The adapters alone, on the student, are the merged model.
    merged = AutoModelForCausalLM.from_pretrained(run / "final")
    student = AutoModelForCausalLM.from_pretrained(world.student)
    adapted = peft.PeftModel.from_pretrained(student, run / "final" / "adapter")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=0, atol=1e-5)
    assert (run / "best" / "model.safetensors").is_file()
    # Checkpoints hold the adapters alone, and a run resumes from them bitwise.
    saved = torch.load(next((run / "checkpoints").glob("*")) / "model.pt")
    assert all("lora_" in name for name in saved)
    (run / "result.json").unlink()
    whole = (run / "log.jsonl").read_bytes()
    train(config(world, run, **settings, keep_best=True, eval_labels=world.labels))
    assert (run / "log.jsonl").read_bytes() == whole


def test_adapter_on_the_head(world: World, tmp_path: Path) -> None:
    student = tmp_path / "student"
    make_tokenizer(student)
    make_model(student, vocab_size=world.vocab_size, layers=1, tie_word_embeddings=False)
    settings: dict[str, Any] = {"student": student, "lora_r": 2, "lora_targets": ("lm_head",)}
    run = tmp_path / "run"
    train(config(world, run, **settings, eval_labels=world.labels, epochs=1, lr=1e-2))
    before, after = (
        load_file(student / "model.safetensors"),
        load_file(run / "final" / "model.safetensors"),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"lm_head.weight"}
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    train(config(world, tmp_path / "x", student=run / "final", eval_labels=world.labels, epochs=1))
    first = json.loads((tmp_path / "x" / "eval.jsonl").read_text().splitlines()[0])
    assert first["kl"] == pytest.approx(last["kl"], rel=1e-5)  # the merged model was measured


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("lm_head",), "tied to the embeddings"),
        (("q_proj", "embed_tokens"), "embed_tokens: the head is tied to the embeddings"),
        (("model.embed_tokens",), "tied to the embeddings"),
        (("qq_proj",), "qq_proj"),
    ],
)
def test_invalid_targets_are_refused(
    world: World, tmp_path: Path, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SoftshardsError, match=message) as caught:
        train(config(world, tmp_path, lora_r=2, lora_targets=targets))
    assert "hint:" in str(caught.value)


def test_without_peft(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(SoftshardsError, match=r"softshards\[lora\]"):
        train(config(world, tmp_path, lora_r=2))
