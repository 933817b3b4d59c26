from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas import SoftshardsError, open_label_set
from tests.tiny_model import make_model
from tests.trainer.conftest import World
from tests.trainer.data.test_dataset import altered
from tests.trainer.running import (
    command,
    config,
    exit_code,
    log,
    pausing,
    resume_with,
    start,
    wait_for_pause,
)
from trainer.cli import app
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.losses.batch_loss import label_losses
from trainer.student.student import load_student
from trainer.train.loop import train


@pytest.mark.slow
def test_killed_run_resumes_bitwise(world: World, tmp_path: Path) -> None:
    """kill -9, the same command, SIGTERM, the same command: the run ends as if uninterrupted."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reference = start(command(world, whole))
    process = start(pausing(command(world, broken), 17))
    wait_for_pause(process)
    process.kill()
    process.wait()
    assert len(log_lines(broken)) == 17
    process = start(pausing(command(world, broken), 40))
    resume_with(wait_for_pause(process), signal.SIGTERM)
    _, errors = process.communicate()
    assert len(log_lines(broken)) == 41  # it finishes the step
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by signal 15" in errors
    assert "Traceback" not in errors
    process = start(command(world, broken))
    assert process.wait() == 0, process.communicate()[1]
    assert reference.wait() == 0
    assert (broken / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    weights = [p / "final" / "model.safetensors" for p in (whole, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = start(command(world, broken))
    _, errors = again.communicate()
    assert again.returncode == 0
    assert "finished: reused" in errors


def log_lines(out: Path) -> list[bytes]:
    return (out / "log.jsonl").read_bytes().splitlines()


@pytest.mark.slow
def test_training_learns_from_the_teacher(world: World, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 30, "lr": 1e-2, "student": world.student}
    assert train(config(world, tmp_path / "kd", loss=("forward_kl=1",), **settings)) == 0
    assert train(config(world, tmp_path / "ce", loss=("ce=1",), **settings)) == 0
    kd, ce = log(tmp_path / "kd"), log(tmp_path / "ce")
    assert kd[-1]["kl"] < 0.5 * kd[0]["kl"]
    assert ce[-1]["ce"] < ce[0]["ce"] - 1
    assert kd[-1]["kl"] < ce[-1]["kl"]
    assert kd[0]["kl"] == ce[0]["kl"]  # CE alone reports KL too
    assert kd[0]["loss"] == kd[0]["kl"]
    assert [line["tokens"] for line in kd] == [line["tokens"] for line in ce]
    result = json.loads((tmp_path / "kd" / "result.json").read_text())
    assert result["tokens"] == kd[-1]["tokens"]
    assert result["label_set"]["identity"]["k"] == 8


def test_a_step_follows_the_gradient_of_the_mean_over_all_labels(
    world: World, tmp_path: Path
) -> None:
    """4 packs per step, accumulated one by one, equal one backward pass over all their labels."""
    labels = open_label_set(world.labels)
    packs = list(LabelDataset(labels, pack_tokens=128, window=4))[:4]
    student = load_student(world.student, labels).train()
    losses = [label_losses(student(b), b) for b in map(collate, packs)]
    kl, ce = (torch.cat(parts) for parts in zip(*losses))
    ((kl + 0.5 * ce).sum() / len(kl)).backward()
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in student.parameters() if p.grad is not None]
    )
    train(config(world, tmp_path, loss=("forward_kl=1", "ce=0.5"), max_steps=1, clip=0.0))
    line = log(tmp_path)[0]
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert line["loss"] == pytest.approx((kl.mean() + 0.5 * ce.mean()).item(), rel=1e-5)
    assert line["labels"] == len(kl)


def test_changed_settings_are_refused_field_by_field(world: World, tmp_path: Path) -> None:
    train(config(world, tmp_path, epochs=1))
    assert exit_code(command(world, tmp_path)[3:]) == 2


def test_changed_settings_of_an_unfinished_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(world, tmp_path, save_every=2))
    (tmp_path / "result.json").unlink()
    with pytest.raises(SoftshardsError) as caught:
        train(config(world, tmp_path, save_every=2, lr=1e-4, loss=("ce=1",)))
    assert "config.loss: then ['forward_kl=1', 'ce=1'], now ['ce=1']" in str(caught.value)
    assert "config.lr: then 0.001, now 0.0001" in str(caught.value)
    assert "config.temperature" not in str(caught.value)
    with pytest.raises(SoftshardsError, match="--resume is never"):
        train(config(world, tmp_path, resume="never"))
    assert train(config(world, tmp_path, save_every=3)) == 0  # the interval of saving may change
    assert "resuming after step" in capsys.readouterr().err


def test_rotation_and_a_damaged_checkpoint(world: World, tmp_path: Path) -> None:
    train(config(world, tmp_path, save_every=1, keep_checkpoints=2))
    whole = (tmp_path / "log.jsonl").read_bytes()
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert len(kept) == 2
    (tmp_path / "result.json").unlink()
    (kept[-1] / "model.pt").write_bytes(b"short")  # it resumes from the one before
    train(config(world, tmp_path, save_every=1))
    assert (tmp_path / "log.jsonl").read_bytes() == whole


def test_a_full_disk_damages_nothing_that_was_saved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the second checkpoint; once there is room, the run ends the same."""
    train(config(world, tmp_path / "whole", save_every=2, max_steps=6))
    run = config(world, tmp_path / "run", save_every=2, max_steps=6)
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "step-00000004" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SoftshardsError, match="the disk is full: step-00000004"):
            train(run)
    assert [path.name for path in (run.out / "checkpoints").iterdir()] == ["step-00000002"]
    assert train(run) == 0
    assert log(run.out) == log(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_rows(
    world: World, tmp_path: Path
) -> None:
    """With one broken embedding, exactly the packs that hold its token are named."""
    student = tmp_path / "student"
    shutil.copytree(world.student, student)
    make_model(student, vocab_size=world.vocab_size, layers=1, tie_word_embeddings=False)
    packs = list(LabelDataset(world.labels, pack_tokens=128, window=4))[:4]
    tokens = [set(collate(pack).input_ids[0].tolist()) for pack in packs]
    broken = min(tokens[2] - tokens[0] - tokens[1] - tokens[3])
    model = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
    model.save_pretrained(student)
    with pytest.raises(SoftshardsError, match="not finite at step 1"):
        train(config(world, tmp_path / "run", student=student))
    listed = json.loads((tmp_path / "run" / "not-finite-rank0.json").read_text())
    assert listed["rows"] == [packs[2].keys]


def user_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_code(arguments) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert len(re.findall("^error:", errors, re.MULTILINE)) == 1
    return errors


def test_altered_shard_is_one_clear_error(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(world, tmp_path / "run")[3:]
    arguments[arguments.index("--labels") + 1] = str(altered(world, tmp_path))
    errors = user_error(arguments, capsys)
    assert "part-000001" in errors
    assert "hint:" in errors


def test_config_file(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_file = app.config
    file = tmp_path / "train.yaml"
    file.write_text(
        f"labels: {world.labels}\nstudent: {world.student}\nout: {tmp_path / 'run'}\n"
        "pack_tokens: 128\nloss: [forward_kl=0.25, ce=1]\nlr: 0.5\nmax_steps: 1\n"
    )
    assert exit_code(["train", "--config", str(file), "--lr", "0.001"]) == 0
    settings = json.loads((tmp_path / "run" / "result.json").read_text())["config"]
    assert (settings["lr"], settings["pack_tokens"]) == (0.001, 128)
    assert settings["loss"] == ["forward_kl=0.25", "ce=1"]
    file.write_text(file.read_text() + "pack_token: 3\n")
    assert exit_code(["train", "--config", str(file)])
    assert "pack" in capsys.readouterr().err
    assert app.config == without_file  # the next call in this process starts without the file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "--lr is 0.0; it must be above 0"),
        ({"loss": ("forward_kl=0", "ce=0")}, "--loss: all weights are 0"),
        ({"packs_per_step": 0}, "--packs-per-step is 0; it must be at least 1"),
        ({"eval_every": 5}, "--eval-labels"),
        ({"tracker": "trackio"}, "--tracker trackio: it is not installed"),
    ],
)
def test_impossible_settings_are_refused(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("trainer.train.train_config.find_spec", lambda _: None)
    with pytest.raises(SoftshardsError, match=re.escape(message)):
        config(world, tmp_path, **settings)
