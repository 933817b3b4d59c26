"""Run the trainer as a user does, in processes of its own or in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import World
from trainer.train.train_config import TrainConfig


def config(world: World, out: Path, **settings: Any) -> TrainConfig:
    base: dict[str, Any] = {"pack_tokens": 128, "packs_per_step": 4, "window": 4, "lr": 1e-3}
    base |= {"labels": world.labels, "student": world.student, "out": out, "epochs": 2}
    return TrainConfig(**(base | settings))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def command(world: World, out: Path, *more: str) -> list[str]:
    flags = ["--labels", world.labels, "--student", world.student, "--out", out]
    flags += ["--pack-tokens", 128, "--packs-per-step", 1, "--window", 4, "--epochs", 16]
    flags += ["--save-every", 7, "--lr", "1e-3", "--gradient-checkpointing", *more]
    return [sys.executable, "-m", "trainer", "train", *map(str, flags)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    while process.poll() is None:
        if (out / "log.jsonl").exists() and len(
            (out / "log.jsonl").read_bytes().split(b"\n")
        ) > step:
            return
        time.sleep(0.002)
    pytest.fail(f"ended before step {step}: {process.communicate()[1]}")


def start_ranks(arguments: list[str], processes: int = 2) -> subprocess.Popen[str]:
    """Start a command in several processes, on a port that is free."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start([arguments[0], *launch, *arguments[1:]])


def torchrun(arguments: list[str], processes: int = 2) -> tuple[int, str]:
    """Run a command in several processes; return the exit code and what was said."""
    return outcome(start_ranks(arguments, processes))


def accelerate_launch(arguments: list[str], *how: str) -> tuple[int, str]:
    """Run a command in two processes as `accelerate launch` starts them."""
    machines = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    any_port = ["--main_process_port", "0"]  # else it looks and then takes: somebody may be quicker
    launch = ["-m", "accelerate.commands.launch", *how, *machines.split(), *any_port]
    return outcome(start([arguments[0], *launch, *arguments[1:]]))


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what was said, in time."""
    try:
        _, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends the others, too
        process.wait()
        pytest.fail("the processes wait for each other")
    return process.returncode, errors
