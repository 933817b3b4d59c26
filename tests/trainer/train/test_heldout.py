"""Held-out measurements during a run: their steps, the best model, and early stopping."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from schemas import open_label_set
from tests.trainer.conftest import World
from tests.trainer.running import config, log
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import evaluate
from trainer.student.student import load_student
from trainer.train.loop import train


def evals(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]


def measured(world: World, model: Path, out: Path) -> float:
    evaluate(EvaluateConfig(labels=world.labels, model=(model,), out=out))
    kl: float = json.loads(out.read_text())["models"][0]["all"]["kl"]
    return kl


def test_measured_before_the_first_step_and_after_the_last(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(world, run, eval_labels=world.labels, eval_every=3, epochs=1))
    lines = evals(run)
    assert [line["step"] for line in lines] == [0, 3, 4]
    assert lines[0]["kl"] == pytest.approx(measured(world, world.student, tmp_path / "a.json"))
    assert lines[2]["kl"] == pytest.approx(measured(world, run / "final", tmp_path / "b.json"))
    assert all(0 < line["ece"] < 1 for line in lines)
    assert load_student(run / "final", open_label_set(world.labels))


def test_measuring_in_bf16(world: World, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps a process's first dtype
    train(config(world, tmp_path, eval_labels=world.labels, epochs=1, dtype="bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert [line["step"] for line in evals(tmp_path)] == [0, 4]
    assert evals(tmp_path)[1]["kl"] > 0


def test_stops_once_it_gets_worse_and_keeps_the_best(world: World, tmp_path: Path) -> None:
    """With a learning rate that soon ruins the student, the best model is an earlier one."""
    run = tmp_path / "run"
    settings: dict[str, Any] = {"eval_labels": world.labels, "eval_every": 2, "patience": 2}
    settings |= {"keep_best": True, "epochs": 30, "lr": 0.3, "warmup": 20, "schedule": "constant"}
    assert train(config(world, run, **settings)) == 0
    lines, result = evals(run), json.loads((run / "result.json").read_text())
    best = min(lines, key=lambda line: line["kl"])
    assert result["stopped_early"]
    assert result["best"] == best
    assert 0 < best["step"] == lines[-3]["step"]  # two measurements without a better one
    assert log(run)[-1]["step"] == lines[-1]["step"] == result["steps"]
    assert measured(world, run / "best", tmp_path / "c.json") == pytest.approx(best["kl"])
    assert measured(world, run / "final", tmp_path / "d.json") > best["kl"]


def test_a_pause_changes_nothing_of_a_run(world: World, tmp_path: Path) -> None:
    """It is measured there, which neither ends the run nor is its best."""
    settings: dict[str, Any] = {"eval_labels": world.labels, "eval_every": 2, "patience": 2}
    settings |= {"keep_best": True, "lr": 0.3, "warmup": 4, "schedule": "constant", "epochs": 5}
    whole, paused = tmp_path / "whole", tmp_path / "paused"
    train(config(world, whole, **settings))
    for step in (1, 3, None):
        train(config(world, paused, **settings, pause_after=step))
    at_pauses = [line for line in evals(paused) if line["step"] in (1, 3)]
    assert [line.pop("at_pause") for line in at_pauses] == [True, True]
    assert [line for line in evals(paused) if "at_pause" not in line] == evals(whole)
    ends = [json.loads((out / "result.json").read_text()) for out in (whole, paused)]
    for name in ("steps", "stopped_early", "best", "files"):
        assert ends[0][name] == ends[1][name]


@pytest.mark.slow
def test_patience_survives_an_interruption(world: World, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_labels": world.labels, "eval_every": 2, "patience": 2}
    settings |= {"epochs": 30, "lr": 0.3, "warmup": 20, "schedule": "constant"}
    train(config(world, tmp_path, **settings, save_every=3, keep_checkpoints=100))
    whole, measurements = log(tmp_path), evals(tmp_path)
    (tmp_path / "result.json").unlink()
    shutil.rmtree(sorted((tmp_path / "checkpoints").iterdir())[-1])
    train(config(world, tmp_path, **settings))
    assert log(tmp_path) == whole
    assert evals(tmp_path) == measurements
