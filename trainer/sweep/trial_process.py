"""The process of a trial: `trainer train --config OUT/trials/NAME/trial.yaml`, and no orphan.

`python -m trainer.sweep.trial_process PARENT COMMAND...` runs `trainer COMMAND...` and sends it
SIGTERM (it saves a checkpoint) as soon as the process PARENT is no longer its parent: when the
sweep is killed with -9, Ray's processes die with it, and this one follows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.sweep.trial_folder import SETTINGS, TRAIN_LOG

LOCK = ".lock"
SAVE_SECONDS = 300.0
"""Longest wait for a process that was told to stop, while it saves."""
PARENT_CHECK_SECONDS = 0.5


def start(folder: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Begin or resume the trial in `folder`; what it prints is appended to its train.log."""
    _wait_for_orphan(folder)
    command = [sys.executable, "-m", "trainer.sweep.trial_process", str(os.getpid())]
    command += ["train", "--config", str(folder / SETTINGS)]
    with (folder / TRAIN_LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the sweep, which then stops its trials
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Have a trial save its checkpoint and end."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(SAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_orphan(folder: Path) -> None:
    """Wait while the process of a killed sweep is still saving here.

    If it does not end, `trainer train` will say who holds the folder.
    """
    try:
        with FileLock(folder / LOCK, timeout=SAVE_SECONDS):
            pass
    except Timeout:
        return


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_follow, args=(int(sys.argv[1]),), daemon=True).start()
    from trainer.cli import main

    main(sys.argv[2:])
