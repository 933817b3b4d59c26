"""Commands on the machine's device: training, resuming and evaluating, in fp32 and bf16.

On a GPU the values are compared with those of the CPU of the same machine. On a CPU
other tests have adapters, compilation and evaluation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import World
from tests.trainer.devices import TRAINED_ON
from tests.trainer.running import command, log

NAMES = ("loss", "kl", "ce", "teacher_tail", "student_rest", "grad_norm")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The device that commands take here."""
    return str(request.param)


def run(arguments: list[str], *, on_cpu: bool = False) -> None:
    """Run a command in a process of its own: Accelerate keeps the first precision of a process."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    done = subprocess.run(
        arguments,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | hidden,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def flags(world: World, out: Path, *more: str) -> list[str]:
    """7 steps of 4 packs."""
    arguments = command(world, out, *more)
    for name, value in (("--packs-per-step", "4"), ("--epochs", "2"), ("--save-every", "3")):
        arguments[arguments.index(name) + 1] = value
    arguments.remove("--gradient-checkpointing")
    return arguments


def close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], rel: float) -> None:
    assert [line["tokens"] for line in ours] == [line["tokens"] for line in theirs]
    for name in NAMES:
        assert [line[name] for line in ours] == pytest.approx(
            [line[name] for line in theirs], rel=rel
        ), name


@pytest.mark.usefixtures("quick_children")
@pytest.mark.slow
@pytest.mark.parametrize("device", TRAINED_ON, indirect=True)
def test_a_run_and_its_resumption(device: str, world: World, tmp_path: Path) -> None:
    """fp32 gives the CPU's losses, a resumed run its own, bf16 nearly those of fp32."""
    whole, rest, narrow = (tmp_path / name for name in ("whole", "rest", "bf16"))
    run(flags(world, whole, "--keep-checkpoints", "9"))
    lines = log(whole)
    assert len(lines) == 7
    saved = whole / "checkpoints" / "step-00000003"
    run(flags(world, rest, "--resume", str(saved)))
    close(log(rest), lines[3:], rel=1e-5)
    run(flags(world, narrow, "--dtype", "bf16"))
    close(log(narrow), lines, rel=0.05)
    if device == "cuda":
        run(flags(world, tmp_path / "cpu"), on_cpu=True)
        close(lines, log(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused"])
@pytest.mark.parametrize("device", TRAINED_ON[1:], indirect=True)
@pytest.mark.usefixtures("device")
def test_adapters_and_checkpointing(optimizer: str, world: World, tmp_path: Path) -> None:
    """LoRA, gradient checkpointing and other losses in bf16: resumed alike."""
    more = ["--lora-r", "4", "--gradient-checkpointing", "--dtype", "bf16"]
    more += ["--optimizer", optimizer, "--loss", "jsd=1", "--loss", "renormalized_kl=0.5"]
    run(flags(world, tmp_path / "whole", *more))
    saved = tmp_path / "whole" / "checkpoints" / "step-00000003"
    run(flags(world, tmp_path / "rest", *more, "--resume", str(saved)))
    lines = log(tmp_path / "whole")
    assert lines[-1]["loss"] < lines[0]["loss"]
    close(log(tmp_path / "rest"), lines[3:], rel=1e-3)
    assert (tmp_path / "whole" / "final" / "adapter").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("device", TRAINED_ON[1:], indirect=True)
@pytest.mark.usefixtures("device")
def test_compiled(world: World, tmp_path: Path) -> None:
    """Compiled layers give the losses of those that are not, in bf16."""
    run(flags(world, tmp_path / "compiled", "--dtype", "bf16", "--compile"))
    run(flags(world, tmp_path / "plain", "--dtype", "bf16"))
    close(log(tmp_path / "compiled"), log(tmp_path / "plain"), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("device", TRAINED_ON[1:], indirect=True)
@pytest.mark.usefixtures("device")
def test_evaluation(world: World, tmp_path: Path) -> None:
    """fp32 gives the CPU's metrics, bf16 nearly."""
    found = {}
    for name, more, on_cpu in (
        ("fp32", [], False),
        ("bf16", ["--dtype", "bf16"], False),
        ("cpu", [], True),
    ):
        out = tmp_path / f"{name}.json"
        arguments = [sys.executable, "-m", "trainer", "evaluate", "--labels", str(world.labels)]
        arguments += ["--model", str(world.student), "--model", str(world.teacher)]
        run([*arguments, "--out", str(out), *more], on_cpu=on_cpu)
        found[name] = [model["all"] for model in json.loads(out.read_text())["models"]]
    for name, tolerance in (("fp32", 1e-4), ("bf16", 3e-2)):
        for ours, theirs in zip(found[name], found["cpu"], strict=True):
            assert ours["labels"] == theirs["labels"]
            for metric in ("ce", "ppl", "kl", "agreement", "ece"):
                assert ours[metric] == pytest.approx(theirs[metric], rel=tolerance, abs=tolerance)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two GPUs")
@pytest.mark.parametrize("how", [[], ["--shard"]], ids=["copies", "sharded"])
def test_two_gpus_learn_like_one(how: list[str], world: World, tmp_path: Path) -> None:
    """Over NCCL: the losses of one process."""
    run(flags(world, tmp_path / "one"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one = flags(world, tmp_path / "two", *how)
    run([one[0], *launcher, *one[1:]])
    close(log(tmp_path / "two"), log(tmp_path / "one"), rel=1e-4)
