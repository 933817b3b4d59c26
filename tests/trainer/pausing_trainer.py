"""`python -m tests.trainer.pausing_trainer STEP COMMAND...`: `trainer`, which pauses at a step.

Once the line of STEP is in log.jsonl the process stops itself (SIGSTOP), so a test can interrupt a
run at a known step, however fast the machine is. SIGCONT makes it continue.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.cli import main
from trainer.run_files import LOG, append_line
from trainer.train import loop

if __name__ == "__main__":
    pause_at = int(sys.argv[1])

    def append_and_pause(path: Path, record: Mapping[str, Any]) -> None:
        append_line(path, record)
        if path.name == LOG and record["step"] == pause_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    loop.append_line = append_and_pause
    main(sys.argv[2:])
