"""Before step 0: the plan of a run, and the check that it fits into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.tiny_model import make_model
from tests.trainer.conftest import World
from tests.trainer.running import command, config, exit_code
from tests.trainer.student.families import family_config
from trainer.student.student import Student
from trainer.train.loop import train
from trainer.train.step_memory import activation_bytes, estimate, padded_bytes, saved_bytes


@pytest.fixture
def student(tmp_path: Path) -> Student:
    make_model(tmp_path, vocab_size=300, layers=4, max_position_embeddings=2048)
    return Student(LlamaForCausalLM.from_pretrained(tmp_path), 300)


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_equal_the_bytes_that_autograd_saves(student: Student, bf16: bool) -> None:
    """Measured at up to 128 tokens, right at 1000."""
    kept = saved_bytes(student, 1000, bf16=bf16)
    assert kept > 1000 * 4 * 64 * 4  # at least the layers' inputs
    assert activation_bytes(student, 1000, bf16=bf16) == pytest.approx(kept, rel=0.02)


def test_activations_of_attention_that_saves_its_scores(student: Student) -> None:
    """Eager attention grows with the square of the length, and so does the estimate."""
    student.model.set_attn_implementation("eager")
    kept = saved_bytes(student, 1000, bf16=False)
    assert kept > 1000 * 1000 * 4 * 2 * 4  # layers x heads x float32
    assert activation_bytes(student, 1000, bf16=False) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["mamba2", "lfm2", "granitemoehybrid", "qwen3_next"])
def test_activations_of_padded_batches(family: str, bf16: bool) -> None:
    """Rows of 32 tokens; Mamba-2 computes 256 for each of them."""
    model = AutoModelForCausalLM.from_config(family_config(family))
    student = Student(model, 280)
    kept = saved_bytes(student, 32, rows=12, bf16=bf16)
    assert padded_bytes(student, 12 * 32, 32, bf16=bf16) == pytest.approx(kept, rel=0.05)
    alone = saved_bytes(student, 12 * 32, bf16=bf16)
    assert (kept > 3 * alone) == (family == "mamba2")


def test_every_part_is_counted(student: Student) -> None:
    def of(world_size: int = 1, sharded: bool = False, **settings: Any) -> dict[str, int]:
        chosen: dict[str, Any] = {"optimizer": "adamw_fused", "bf16": False}
        chosen |= {"gradient_checkpointing": False, "chunk_bytes": 64 * 2**20}
        chosen |= {"pack_tokens": 1000, "row_tokens": 50, "k": 8, "window_bytes": 7} | settings
        memory = estimate(student, **chosen, world=world_size, sharded=sharded)
        return vars(memory) | {"total": memory.total}

    parameters = sum(p.numel() for p in student.parameters())
    plain = of()
    assert plain["weights"] == plain["gradients"] == 4 * parameters
    assert plain["optimizer"] == 8 * parameters
    assert plain["data"] == 7
    assert plain["total"] == sum(v for name, v in plain.items() if name != "total")
    assert of(gradient_checkpointing=True)["activations"] < plain["activations"] / 2
    assert of(optimizer="adamw_8bit")["optimizer"] < plain["optimizer"] / 3
    assert of(bf16=True)["activations"] < plain["activations"]
    assert of(world_size=2)["gradients"] == 2 * plain["gradients"]  # DDP's buckets
    halves = of(world_size=2, sharded=True)
    assert halves["optimizer"] == plain["optimizer"] // 2
    for parameter in student.model.model.parameters():
        parameter.requires_grad_(False)
    frozen = of()
    assert frozen["gradients"] == frozen["optimizer"] == 0  # the head is tied to the embeddings
    assert frozen["activations"] < plain["activations"]


def test_peak_of_a_real_step_is_within_the_estimate(student: Student) -> None:
    """Ask the allocator itself for the bytes that are held after the forward pass."""
    ids = torch.arange(1000)[None] % 300
    with torch.profiler.profile(profile_memory=True) as profile:
        states = student.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    held = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert held == pytest.approx(activation_bytes(student, 1000, bf16=False), rel=0.1)
    del states


def test_too_little_memory_is_refused_before_the_first_step(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert exit_code([*command(world, out)[3:], "--memory-gb", "0.01"]) == 2
    errors = capsys.readouterr().err
    assert "needs about 0.2" in errors
    assert "0.01 GB available on cpu: weights 0.2" in errors
    assert "--lora-r" in errors
    assert not (out / "log.jsonl").exists()
    chunks = ["--chunk-bytes", "100000"]  # the head's buffers are most of a tiny student
    small = [*chunks, "--memory-gb", "0.01", "--max-steps", "1"]
    assert exit_code([*command(world, out)[3:], *small]) == 0


def test_the_dry_run_predicts_the_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command(world, tmp_path / "run")[3:], "--dry-run"]
    arguments[arguments.index("--epochs") + 1] = "1"
    assert exit_code(arguments) == 0
    assert "packs       13, 80.9% full" in capsys.readouterr().out
    assert exit_code([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    train(config(world, tmp_path / "run", packs_per_step=1, epochs=1))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (plan["steps"], plan["tokens"]) == (result["steps"], result["tokens"])
    assert plan["parameters"] == plan["trained"] == result["parameters"]
    assert plan["memory"]["total"] < plan["available"]
