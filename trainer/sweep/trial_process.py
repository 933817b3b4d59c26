"""Start and stop the process of a trial: `trainer train --config OUT/trials/NAME/trial.yaml`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trainer.sweep.trial_folder import SETTINGS, TRAIN_LOG
from trainer.train.run_lock import wait_for_lock

CHILD = "trainer.sweep.trial_child"
SAVE_SECONDS = 300.0
"""Longest wait for a process to save its checkpoint and end."""


def start(folder: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start or resume the trial in `folder`; its output is appended to its train.log."""
    # The process of a killed sweep may still be saving here. If it does not end, `trainer train`
    # reports the lock.
    wait_for_lock(folder, SAVE_SECONDS)
    command = [sys.executable, "-m", CHILD, str(os.getpid())]
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
    """Make a trial save its checkpoint and end."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(SAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
