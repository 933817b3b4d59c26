"""Two DDP ranks over gloo take the steps of one process, and survive kill -9."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from schemas import open_label_set
from tests.trainer.conftest import World
from tests.trainer.running import (
    command,
    config,
    log,
    outcome,
    pausing,
    run_ranks,
    start_ranks,
    torchrun,
    wait_for_pause,
)
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.losses.batch_loss import label_losses
from trainer.student.student import load_student
from trainer.train.loop import train

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"packs_per_step": 4, "epochs": 6, "save_every": 4}
BOUND = 5e-7
"""Relative. Neighboring float32 numbers are 1.2e-7 apart, and the order of summation differs."""


def flags(world: World, out: Path) -> list[str]:
    arguments = command(world, out)
    for name, value in SETTINGS.items():
        arguments[arguments.index("--" + name.replace("_", "-")) + 1] = str(value)
    return arguments


@pytest.fixture(scope="module")
def two(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two ranks, not interrupted."""
    out = tmp_path_factory.mktemp("two") / "run"
    code, errors = run_ranks(flags(world, out))
    assert code == 0, errors
    return out


def by_hand(world: World, rates: list[float]) -> list[dict[str, float]]:
    """Take each step as one backward pass over the labels of its 4 packs, with PyTorch's AdamW."""
    labels = open_label_set(world.labels)
    student = load_student(world.student, labels).train()
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    others = [{"params": [p for p in student.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    groups = [{"params": matrices, "weight_decay": 0.01}, *others]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    packs = list(LabelDataset(labels, pack_tokens=128, window=4, epochs=SETTINGS["epochs"]))
    lines = []
    for step, rate in enumerate(rates):
        batches = [collate(pack) for pack in packs[4 * step : 4 * step + 4]]
        losses = [label_losses(student(batch), batch) for batch in batches]
        kl, ce = (torch.cat(parts).mean() for parts in zip(*losses))
        (kl + ce).backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        values = {"loss": kl + ce, "kl": kl, "ce": ce, "grad_norm": norm}
        lines.append({name: value.item() for name, value in values.items()})
    return lines


def test_accumulation_is_one_batch_is_two_ranks(world: World, two: Path, tmp_path: Path) -> None:
    train(config(world, tmp_path, **SETTINGS))
    accumulated, shared = log(tmp_path), log(two)
    at_once = by_hand(world, [line["lr"] for line in accumulated])
    assert len(at_once) == len(shared) == len(accumulated) > 15
    for first, second in ((accumulated, at_once), (at_once, shared), (shared, accumulated)):
        for name in ("loss", "kl", "ce", "grad_norm"):
            gap = max(abs(a[name] / b[name] - 1) for a, b in zip(first, second))
            assert gap < BOUND, name


def test_killed_ranks_resume_bitwise(world: World, two: Path, tmp_path: Path) -> None:
    """Kill the launcher and both ranks with -9, then run the same command."""
    out = tmp_path / "run"
    arguments = flags(world, out)
    process = torchrun(pausing(arguments, 6))
    wait_for_pause(process)
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 3
    for member in family:
        member.kill()
    process.wait()
    assert not (out / "result.json").exists()
    code, errors = run_ranks(arguments)
    assert code == 0, errors
    assert "resuming after step" in errors
    for name in ("log.jsonl", "final/model.safetensors"):
        assert (out / name).read_bytes() == (two / name).read_bytes()


def test_a_rank_that_dies_ends_the_other(world: World, tmp_path: Path) -> None:
    (main, other), _store = start_ranks(pausing(flags(world, tmp_path), 2))
    paused = wait_for_pause(main)
    other.kill()
    other.wait()
    paused.send_signal(signal.SIGCONT)
    code, errors = outcome(main)
    assert code == 2, errors
    assert "error: another process of this run ended" in errors
    assert "Traceback" not in errors
