"""Trackers, for real and without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.loop import train


def test_tensorboard(world: World, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(world, tmp_path, tracker="tensorboard", eval_labels=world.labels))
    events = EventAccumulator(str(tmp_path / "softshards"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log(tmp_path)
    ]
    assert [event.step for event in events.Scalars("eval/kl")] == [0, len(losses)]
    assert {"teacher_tail", "student_rest", "lr", "grad_norm"} <= set(events.Tags()["scalars"])


def test_wandb_offline(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(config(world, tmp_path / "run", tracker="wandb"))
    assert log(tmp_path / "run")
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"student_rest" in content
    assert b"grad_norm" in content
