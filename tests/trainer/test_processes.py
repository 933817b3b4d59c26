"""Several processes do what one does: DDP and FSDP2, over gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import command, config, log, torchrun
from trainer.loop import train

KEYS = ("step", "tokens", "labels", "lr")


def flags(world: World, out: Path, *more: str) -> list[str]:
    """4 steps of 4 packs, and the last one short: 13 packs, one rank has nothing of its own."""
    arguments = command(world, out, *more)
    for name, value in (("--packs-per-step", "4"), ("--epochs", "1"), ("--save-every", "2")):
        arguments[arguments.index(name) + 1] = value
    return arguments


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The same packs in the same order, and the same losses up to the order of summation."""
    assert [[line[key] for key in KEYS] for line in ours] == [
        [line[key] for key in KEYS] for line in theirs
    ]
    for name in ("loss", "kl", "ce", "teacher_tail", "student_rest"):
        assert [line[name] for line in ours] == pytest.approx(
            [line[name] for line in theirs], rel=1e-6
        )
    norms = [[line["grad_norm"] for line in lines] for lines in (ours, theirs)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.fixture(scope="module")
def one(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, by accumulation."""
    out = tmp_path_factory.mktemp("one") / "run"
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "save_every": 2}
    train(config(world, out, **settings, gradient_checkpointing=True, eval_labels=world.labels))
    assert len(log(out)) == 4
    return out


def test_two_processes_learn_what_one_does(world: World, one: Path, tmp_path: Path) -> None:
    code, errors = torchrun(flags(world, tmp_path))
    assert code == 0, errors
    same(log(tmp_path), log(one))


def test_sharded_processes_learn_what_one_does(world: World, one: Path, tmp_path: Path) -> None:
    """FSDP2: steps, held-out measurements, checkpoints, and the model at the end."""
    code, errors = torchrun(
        flags(world, tmp_path / "two", "--shard", "--eval-labels", str(world.labels))
    )
    assert code == 0, errors
    same(log(tmp_path / "two"), log(one))
    evals = [(out / "eval.jsonl").read_text().splitlines() for out in (tmp_path / "two", one)]
    for ours, theirs in zip(*(map(json.loads, lines) for lines in evals), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    weights = [load_file(out / "final" / "model.safetensors") for out in (tmp_path / "two", one)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-5)
    # Its checkpoint, at another world size: the same packs follow.
    saved = tmp_path / "two" / "checkpoints" / "step-00000002"
    settings: dict[str, Any] = {"packs_per_step": 4, "epochs": 1, "resume": saved}
    assert train(config(world, tmp_path / "rest", **settings)) == 0
    same(log(tmp_path / "rest"), log(one)[2:])


def test_one_process_goes_on_as_two_sharded(world: World, one: Path, tmp_path: Path) -> None:
    saved = one / "checkpoints" / "step-00000002"
    code, errors = torchrun(flags(world, tmp_path, "--shard", "--resume", str(saved)))
    assert code == 0, errors
    same(log(tmp_path), log(one)[2:])


def test_packs_that_cannot_be_shared_and_nobody_to_share_with(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SoftshardsError, match="nobody to share"):
        train(config(world, tmp_path, shard=True))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SoftshardsError, match="not a multiple of the 3 processes"):
        train(config(world, tmp_path))
