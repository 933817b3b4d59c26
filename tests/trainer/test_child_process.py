"""Child processes end with the one that started them, and run files and modules alike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.child_process import run_child

WAIT_SECONDS = 600.0
"""A busy machine may take minutes to start a process."""


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_files_and_modules_run_as_by_python(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'beside'")
    program = tmp_path / "program.py"
    program.write_text("import sys, beside\nprint(beside.WORD, sys.argv[1:])\nsys.exit(3)")
    done = run_child(program, 1, tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == f"beside {['1', str(tmp_path)]}\n"
    module = run_child("json.tool", "--help")
    assert (module.returncode, "Validate" in module.stdout or "JSON" in module.stdout) == (0, True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_parent_leaves_no_child(tmp_path: Path, how: signal.Signals) -> None:
    child = tmp_path / "child.py"
    pid_file = tmp_path / "pid"
    child.write_text(
        "import os, time\n"
        f"open({str(pid_file) + '.tmp'!r}, 'w').write(str(os.getpid()))\n"
        f"os.replace({str(pid_file) + '.tmp'!r}, {str(pid_file)!r})\n"
        "time.sleep(600)\n"
    )
    code = f"from trainer.child_process import run_child; run_child({str(child)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(pid_file.exists)
        pid = int(pid_file.read_text())
        assert is_running(pid)
        os.kill(parent.pid, how)
        parent.wait(WAIT_SECONDS)
        wait_until(lambda: not is_running(pid))
    finally:
        parent.kill()
        parent.wait()
