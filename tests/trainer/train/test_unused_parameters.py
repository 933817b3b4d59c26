"""Parameters that get no gradient, or get their first one late, do not keep a run from resuming."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_model import make_tokenizer
from tests.trainer.conftest import World
from tests.trainer.running import config
from trainer.student.student import Student
from trainer.train import loop
from trainer.train.loop import train


def lose_the_end(out: Path, keep: int = 1) -> None:
    """Leave what a killed run leaves: its log and the oldest checkpoints."""
    (out / "result.json").unlink()
    shutil.rmtree(out / "final")
    for folder in sorted((out / "checkpoints").iterdir())[keep:]:
        shutil.rmtree(folder)


def resumes_exactly(world: World, out: Path, **settings: object) -> dict[str, object]:
    """Train, lose the end, resume; return the optimizer's states by parameter at the first save."""
    run = config(world, out, save_every=2, keep_checkpoints=9, **settings)
    train(run)
    weights = out / "final" / "model.safetensors"
    log, model = (out / "log.jsonl").read_bytes(), weights.read_bytes()
    first = torch.load(out / "checkpoints" / "step-00000002" / "optimizer.pt")
    lose_the_end(out)
    train(run)
    assert (out / "log.jsonl").read_bytes() == log
    assert weights.read_bytes() == model
    state: dict[str, object] = first["state"]
    return state


def add_parameter(monkeypatch: pytest.MonkeyPatch, use: Callable[[int], bool]) -> None:
    """Give the student a parameter that scales its hidden states in the passes that `use` names."""
    load, passes = loop._load, iter(range(10**6))

    def patched(*arguments: object) -> Student:
        student = load(*arguments)  # type: ignore[arg-type]
        student.model.spare = nn.Parameter(torch.ones(64, 64))
        student.model.bias = nn.Parameter(torch.ones(64))
        hidden = student.hidden

        def scaled(batch: object) -> torch.Tensor:
            states = hidden(batch)  # type: ignore[arg-type]
            is_used = student.training and use(next(passes))
            return states * student.model.bias * student.model.spare[0] if is_used else states

        student.hidden = scaled  # type: ignore[method-assign, assignment]
        return student

    monkeypatch.setattr(loop, "_load", patched)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused"])
def test_a_parameter_that_is_never_used(
    optimizer: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_parameter(monkeypatch, lambda _: False)
    state = resumes_exactly(world, tmp_path, optimizer=optimizer)
    assert "model.spare" not in state
    assert "model.norm.weight" in {name.removeprefix("model.") for name in state}


@pytest.mark.slow
@pytest.mark.parametrize("first", [4, 6, 12], ids=lambda step: f"first used in pass {step}")
def test_a_parameter_that_is_used_late(
    first: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its optimizer state starts at its first gradient, in the resumed run as in the whole one."""
    run = config(world, tmp_path, save_every=2, keep_checkpoints=9, packs_per_step=1, max_steps=16)
    counted = {"n": 0}
    add_parameter(monkeypatch, lambda _: counted["n"] >= first)
    step = loop.optimizer_step

    def count(run: object, *rest: object) -> object:
        counted["n"] = run.step  # type: ignore[attr-defined]
        return step(run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "optimizer_step", count)
    train(run)
    log = (tmp_path / "log.jsonl").read_bytes()
    for keep in (1, 3, 6):  # before and after the parameter is used
        lose_the_end(tmp_path, keep)
        train(run)
        assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ernie4_5_moe", "mixtral"])
def test_mixtures_of_experts(kind: str, world: World, tmp_path: Path) -> None:
    student = tmp_path / "student"
    make_tokenizer(student)
    settings = {"moe_num_experts": 8, "moe_intermediate_size": 32, "moe_k": 1}
    if kind == "mixtral":
        settings = {"num_local_experts": 8, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            kind,
            vocab_size=world.vocab_size,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            **settings,
        )
    )
    model.save_pretrained(student)
    resumes_exactly(world, tmp_path / "run", student=student)
