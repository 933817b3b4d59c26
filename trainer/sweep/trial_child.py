"""The process of a trial: `trainer`, which stops when its parent is gone.

`python -m trainer.sweep.trial_child PARENT COMMAND...` runs `trainer COMMAND...` and sends itself
SIGTERM (it saves a checkpoint) as soon as the process PARENT is no longer its parent: when a sweep
is killed with -9, Ray's processes die with it, and this one follows.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

PARENT_CHECK_SECONDS = 0.5


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_follow, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = ["trainer", *sys.argv[2:]]
    runpy.run_module("trainer", run_name="__main__")
