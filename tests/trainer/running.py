"""Run the trainer as a user does, in processes of its own or in this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.conftest import World
from trainer.run_files import LOG
from trainer.train.train_config import TrainConfig

HANG_SECONDS = 900
"""Processes that take longer wait for each other."""


def config(world: World, out: Path, **settings: Any) -> TrainConfig:
    """Return settings for a run of 7 steps on the world's label set."""
    base: dict[str, Any] = {"pack_tokens": 128, "packs_per_step": 4, "window": 4, "lr": 1e-3}
    base |= {"labels": world.labels, "student": world.student, "out": out, "epochs": 2}
    return TrainConfig(**(base | settings))


def log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def command(world: World, out: Path, *more: str) -> list[str]:
    """Return a command line for a run of 200 steps."""
    flags = ["--labels", world.labels, "--student", world.student, "--out", out]
    flags += ["--pack-tokens", 128, "--packs-per-step", 1, "--window", 4, "--epochs", 16]
    flags += ["--save-every", 7, "--lr", "1e-3", "--gradient-checkpointing", *more]
    return [sys.executable, "-m", "trainer", "train", *map(str, flags)]


def pausing(arguments: list[str], step: int) -> list[str]:
    """Return the command line of a run that pauses after a step (see `pausing_trainer`)."""
    return [*arguments[:2], "tests.trainer.pausing_trainer", str(step), *arguments[3:]]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        arguments,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_for_pause(process: subprocess.Popen[str]) -> psutil.Process:
    """Wait until a process of a `pausing` command has paused, and return it."""
    launcher = psutil.Process(process.pid)
    while process.poll() is None:
        for member in [launcher, *launcher.children(recursive=True)]:
            try:
                if member.status() == psutil.STATUS_STOPPED:
                    return member
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    pytest.fail(f"ended before it paused: {process.communicate()[1]}")


def resume_with(paused: psutil.Process, number: signal.Signals) -> None:
    """Let a paused process continue; the first thing that it sees is a signal."""
    paused.send_signal(number)
    paused.send_signal(signal.SIGCONT)


def start_ranks(arguments: list[str], processes: int = 2) -> subprocess.Popen[str]:
    """Start a command in several processes, on a free port."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start([arguments[0], *launch, *arguments[1:]])


def torchrun(arguments: list[str], processes: int = 2) -> tuple[int, str]:
    """Run a command in several processes; return the exit code and stderr."""
    return outcome(start_ranks(arguments, processes))


def accelerate_launch(arguments: list[str], *how: str) -> tuple[int, str]:
    """Run a command in two processes as `accelerate launch` starts them."""
    machines = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    any_port = ["--main_process_port", "0"]  # else it looks for a port before it takes it: a race
    launch = ["-m", "accelerate.commands.launch", *how, *machines.split(), *any_port]
    return outcome(start([arguments[0], *launch, *arguments[1:]]))


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and stderr."""
    try:
        _, errors = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends the others, too
        process.wait()
        pytest.fail("the processes wait for each other")
    return process.returncode, errors
