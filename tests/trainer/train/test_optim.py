"""Optimizers and schedules by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from schemas import SoftshardsError
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.train.loop import train


def rates(world: World, out: Path, **settings: Any) -> list[float]:
    train(config(world, out, max_steps=7, epochs=4, lr=1.0e-3, **settings))
    return [line["lr"] / 1e-3 for line in log(out)]


@pytest.mark.slow
def test_schedules(world: World, tmp_path: Path) -> None:
    """8 places, the last unused; 2 steps of warm-up, whose place 0 (rate 0) is skipped."""
    place = [1, 2, 3, 4, 5, 6, 7]
    linear = rates(world, tmp_path / "l", schedule="linear", warmup=2)
    assert linear == pytest.approx([p / 2 if p < 2 else (8 - p) / 6 for p in place])
    floor = {"min_lr_rate": 0.1}
    least = rates(
        world, tmp_path / "m", schedule="cosine_with_min_lr", schedule_args=floor, warmup=2
    )
    cosine = [(1 + math.cos(math.pi * (p - 2) / 6)) / 2 for p in place[1:]]
    assert least == pytest.approx([0.5, *(0.1 + 0.9 * c for c in cosine)])
    stable = rates(
        world,
        tmp_path / "w",
        schedule="warmup_stable_decay",
        schedule_args={"num_decay_steps": 2},
        warmup=2,
    )
    assert stable[:6] == pytest.approx([0.5, 1, 1, 1, 1, 1])
    assert stable[6] < 1
    with pytest.raises(SoftshardsError, match="--schedule cosine") as caught:
        rates(world, tmp_path / "x", schedule="cosine", schedule_args={"nonsense": 1.0})
    assert "--schedule-args" in str(caught.value)


def test_adamw_is_the_same_fused_or_not(world: World, tmp_path: Path) -> None:
    for name in ("adamw", "adamw_fused"):
        train(config(world, tmp_path / name, optimizer=name))
    plain, fused = (log(tmp_path / name) for name in ("adamw", "adamw_fused"))
    assert [line["loss"] for line in plain] == pytest.approx([line["loss"] for line in fused])


@pytest.mark.slow
def test_adamw_8bit_learns_and_resumes(world: World, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": "adamw_8bit", "save_every": 5, "epochs": 4}
    train(config(world, tmp_path, **settings))
    whole = log(tmp_path)
    (tmp_path / "result.json").unlink()
    train(config(world, tmp_path, **settings))
    assert log(tmp_path) == whole
    train(config(world, tmp_path / "plain", epochs=4))
    losses = [[line["loss"] for line in lines] for lines in (whole, log(tmp_path / "plain"))]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_without_torchao(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with pytest.raises(SoftshardsError, match=r"softshards\[optim\]|adamw_fused"):
        train(config(world, tmp_path, optimizer="adamw_8bit"))
