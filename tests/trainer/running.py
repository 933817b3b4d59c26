"""Run the trainer as a user does, in processes of its own or in this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed

from tests.fork_server import Command, fork_server
from tests.trainer.conftest import World
from trainer.cli import main
from trainer.run_files import LOG
from trainer.train.train_config import TrainConfig

Process = Command | subprocess.Popen[str]
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


def exit_code(arguments: list[str]) -> int:
    """Run `trainer ARGUMENTS` in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def command(world: World, out: Path, *more: str) -> list[str]:
    """Return a command line for a run of 200 steps."""
    flags = ["--labels", world.labels, "--student", world.student, "--out", out]
    flags += ["--pack-tokens", 128, "--packs-per-step", 1, "--window", 4, "--epochs", 16]
    flags += ["--save-every", 7, "--lr", "1e-3", "--gradient-checkpointing", *more]
    return [sys.executable, "-m", "trainer", "train", *map(str, flags)]


def pausing(arguments: list[str], step: int) -> list[str]:
    """Return the command line of a run that pauses after a step (see `pausing_trainer`)."""
    return [*arguments[:2], "tests.trainer.pausing_trainer", str(step), *arguments[3:]]


def start(arguments: list[str], environment: dict[str, str] | None = None) -> Command:
    """Start a `command` in a process with the imports done."""
    server = fork_server("tests.trainer.preload")
    return server.start(*arguments[2:], environment=environment)


def wait_for_pause(process: Process) -> psutil.Process:
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


def start_ranks(
    arguments: list[str], processes: int = 2
) -> tuple[list[Command], torch.distributed.TCPStore]:
    """Start a command in several processes, which find each other as under `torchrun`.

    Returns:
        The processes, and the store at which they meet: keep it while they run.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    place |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [
        start(arguments, place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    return ranks, store


def run_ranks(arguments: list[str], processes: int = 2) -> tuple[int, str]:
    """Run a command in several processes; return the exit code and stderr."""
    ranks, _store = start_ranks(arguments, processes)
    with ThreadPoolExecutor(processes) as pool:
        ends = [pool.submit(outcome, rank) for rank in ranks]
        for end in as_completed(ends):
            if end.exception() or end.result()[0] != 0:
                for rank in ranks:  # else they wait for the one that failed
                    rank.kill()
        outcomes = [end.result() for end in ends]
    return max(abs(code) for code, _ in outcomes), "".join(errors for _, errors in outcomes)


def torchrun(arguments: list[str], processes: int = 2) -> subprocess.Popen[str]:
    """Start a command in several processes as `torchrun` does, on a free port."""
    how = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return _launch(*how, *arguments[1:])


def accelerate_launch(arguments: list[str], *how: str) -> tuple[int, str]:
    """Run a command in two processes as `accelerate launch` starts them."""
    machines = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    any_port = ["--main_process_port", "0"]  # else it looks for a port before it takes it: a race
    launcher = ["accelerate.commands.launch", *how, *machines.split(), *any_port]
    return outcome(_launch(*launcher, *arguments[1:]))


def _launch(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def outcome(process: Process) -> tuple[int, str]:
    """Wait for a process; return its exit code and stderr."""
    try:
        _, errors = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends the others, too
        process.wait()
        pytest.fail("the processes wait for each other")
    assert process.returncode is not None
    return process.returncode, errors
