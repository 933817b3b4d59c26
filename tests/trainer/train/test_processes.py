"""Several processes train like one: DDP (see also test_two_ranks.py) and FSDP2, over gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import accelerate_launch, command, config, log, run_ranks, start
from trainer.train.loop import train

pytestmark = pytest.mark.slow

KEYS = ("step", "tokens", "labels", "lr")


def flags(world: World, out: Path, *more: str) -> list[str]:
    """4 steps of 4 packs, the last one short: of 13 packs, one rank gets none of its own."""
    arguments = command(world, out, *more)
    for name, value in (("--packs-per-step", "4"), ("--epochs", "1"), ("--save-every", "2")):
        arguments[arguments.index(name) + 1] = value
    return arguments


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], rel: float = 1e-6) -> None:
    """Check for the same packs in the same order, and losses equal up to the summation order."""
    assert [[line[key] for key in KEYS] for line in ours] == [
        [line[key] for key in KEYS] for line in theirs
    ]
    for name in ("loss", "kl", "ce", "teacher_tail", "student_rest"):
        assert [line[name] for line in ours] == pytest.approx(
            [line[name] for line in theirs], rel=rel
        )
    norms = [[line["grad_norm"] for line in lines] for lines in (ours, theirs)]
    assert norms[0] == pytest.approx(norms[1], rel=100 * rel)


@pytest.fixture(scope="module")
def one(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, by accumulation."""
    out = tmp_path_factory.mktemp("one") / "run"
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "save_every": 2}
    train(config(world, out, **settings, gradient_checkpointing=True, eval_labels=world.labels))
    assert len(log(out)) == 4
    return out


def same_model(ours: Path, theirs: Path, atol: float) -> None:
    """Check for the same names, and weights that are at most `atol` apart."""
    models = [load_file(out / "final" / "model.safetensors") for out in (ours, theirs)]
    assert models[0].keys() == models[1].keys()
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=0, atol=atol)


def test_sharded_and_compiled(world: World, tmp_path: Path) -> None:
    code, errors = run_ranks(flags(world, tmp_path / "two", "--shard", "--compile"))
    assert code == 0, errors
    train(config(world, tmp_path / "one", packs_per_step=4, epochs=1, compile=True))
    same(log(tmp_path / "two"), log(tmp_path / "one"))
    same_model(tmp_path / "two", tmp_path / "one", atol=1e-4)


@pytest.fixture(scope="module")
def one_in_bf16(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a process of its own: Accelerate keeps the first precision of a process."""
    out = tmp_path_factory.mktemp("bf16") / "run"
    process = start(flags(world, out, "--dtype", "bf16"))
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return out


@pytest.mark.usefixtures("quick_children")
def test_copies_in_bf16(world: World, one_in_bf16: Path, tmp_path: Path) -> None:
    code, errors = accelerate_launch(flags(world, tmp_path, "--dtype", "bf16"), "--multi_gpu")
    assert code == 0, errors
    assert "in each of 2 processes (DDP)" in errors
    same(log(tmp_path), log(one_in_bf16))
    same_model(tmp_path, one_in_bf16, atol=1e-4)


def test_sharded_in_bf16(world: World, one_in_bf16: Path, tmp_path: Path) -> None:
    """A weight may round differently, by 0.4 %, and flip the sign of a gradient near 0.

    Then Adam's first steps, of up to 1e-3 each, go the other way.
    """
    code, errors = run_ranks(flags(world, tmp_path, "--shard", "--dtype", "bf16"))
    assert code == 0, errors
    same(log(tmp_path), log(one_in_bf16), rel=1e-4)
    same_model(tmp_path, one_in_bf16, atol=4e-3)


def test_sharded_lora(world: World, tmp_path: Path) -> None:
    """It learns the same as one process, resumes bitwise, and ends in a merged checkpoint."""
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "lora_r": 4}
    more = ("--shard", "--lora-r", "4")
    code, errors = run_ranks(flags(world, tmp_path / "two", *more))
    assert code == 0, errors
    whole = log(tmp_path / "two")
    train(config(world, tmp_path / "one", **settings))
    same(whole, log(tmp_path / "one"))
    saved = tmp_path / "two" / "checkpoints" / "step-00000002"
    assert all("lora_" in name for name in torch.load(saved / "model.pt"))
    code, errors = run_ranks(flags(world, tmp_path / "rest", *more, "--resume", str(saved)))
    assert code == 0, errors
    assert log(tmp_path / "rest") == whole[2:]
    train(config(world, tmp_path / "alone", **settings, resume=saved))
    same(log(tmp_path / "alone"), whole[2:])
    same_model(tmp_path / "two", tmp_path / "rest", atol=0)
    same_model(tmp_path / "two", tmp_path / "one", atol=2e-5)
    final = tmp_path / "two" / "final"
    names = load_file(world.student / "model.safetensors").keys()
    assert load_file(final / "model.safetensors").keys() == names
    assert (final / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("quick_children")
def test_sharded_processes_learn_the_same_as_one(world: World, one: Path, tmp_path: Path) -> None:
    """FSDP2: steps, held-out measurements, checkpoints, and the model at the end."""
    arguments = flags(world, tmp_path / "two", "--eval-labels", str(world.labels))
    code, errors = accelerate_launch(arguments, "--use_fsdp", "--fsdp_version", "2")
    assert code == 0, errors
    assert "in each of 2 processes (FSDP2)" in errors
    same(log(tmp_path / "two"), log(one))
    evals = [(out / "eval.jsonl").read_text().splitlines() for out in (tmp_path / "two", one)]
    for ours, theirs in zip(*(map(json.loads, lines) for lines in evals), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    same_model(tmp_path / "two", one, atol=2e-5)
    # From its checkpoint, another world size sees the same packs.
    saved = tmp_path / "two" / "checkpoints" / "step-00000002"
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "resume": saved}
    assert train(config(world, tmp_path / "rest", **settings)) == 0
    same(log(tmp_path / "rest"), log(one)[2:])


def test_one_process_resumes_as_two_sharded(world: World, one: Path, tmp_path: Path) -> None:
    saved = one / "checkpoints" / "step-00000002"
    code, errors = run_ranks(flags(world, tmp_path, "--shard", "--resume", str(saved)))
    assert code == 0, errors
    same(log(tmp_path), log(one)[2:])


def test_settings_that_do_not_shard_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SoftshardsError, match="--shard needs more than one process"):
        train(config(world, tmp_path, shard=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SoftshardsError, match="could never resume") as caught:
        train(config(world, tmp_path, shard=True, optimizer="adamw_8bit"))
    assert "adamw_fused" in str(caught.value)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SoftshardsError, match="not a multiple of the 3 processes"):
        train(config(world, tmp_path))
