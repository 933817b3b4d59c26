"""A full disk is reported as one in any library; other errors pass unchanged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from schemas import SoftshardsError
from schemas.os_errors import as_user_error, explain_full_disk

FULL = Path("/dev/full")
"""A Linux device on which every write fails as on a full disk."""


def by_python() -> None:
    FULL.write_text("x", encoding="utf-8")


def by_torch() -> None:
    with FULL.open("wb") as stream:
        torch.save({"x": torch.zeros(1000)}, stream)


def by_safetensors() -> None:
    """Raise its error: it writes beside the file and renames, so the device does not help."""
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


@pytest.mark.parametrize("write", [by_python, by_torch, by_safetensors])
def test_full(write: Callable[[], None], tmp_path: Path) -> None:
    within = explain_full_disk("a shard", tmp_path)
    with (
        pytest.raises(SoftshardsError, match=r"full: a shard could not(.|\n)*free"),
        within,
    ):
        write()


def test_others_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explain_full_disk("a shard", tmp_path):
        (tmp_path / "none").read_text(encoding="utf-8")
    within = explain_full_disk("a shard", tmp_path)
    with pytest.raises(RuntimeError, match="unrelated"), within:
        raise RuntimeError("unrelated")


def test_as_user_error() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        by_python()
    assert "the disk is full" in str(as_user_error(caught.value))
    with pytest.raises(FileNotFoundError) as missing:
        Path("/none/there").read_text(encoding="utf-8")
    assert str(as_user_error(missing.value)).startswith("/none/there: No such file")
    assert as_user_error(OSError("of no path")) is None


def test_a_reader_that_stopped_reading_is_no_traceback() -> None:
    program = """
import sys
from schemas.os_errors import leave_closed_pipe
try:
    while True:
        print("line")
except BrokenPipeError:
    sys.exit(leave_closed_pipe())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
