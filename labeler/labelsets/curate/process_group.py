"""Run a process so that it ends with all that it has started, and its output stays small."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import IO

import psutil

BLOCK = 1 << 12


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started in a session of its own, and its descendants.

    That includes those that have left its process group, but not its parent.
    """
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in descendants:
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.wait()


class Drain:
    """Read a pipe to its end in a thread; only its first or last bytes are kept.

    Args:
        stream: the pipe.
        size: bytes to keep.
        last: keep the last ones.
        show: called with each block, as it comes.
    """

    def __init__(
        self,
        stream: IO[bytes],
        *,
        size: int = BLOCK,
        last: bool = False,
        show: Callable[[bytes], None] | None = None,
    ) -> None:
        self._stream, self._size, self._last, self._show = stream, size, last, show
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while block := os.read(self._stream.fileno(), BLOCK):
                if self._last:
                    self._kept = (self._kept + block)[-self._size :]
                elif len(self._kept) < self._size:
                    self._kept = (self._kept + block)[: self._size]
                if self._show is not None:
                    self._show(block)

    def text(self) -> str:
        """Return what was kept of a process that has ended."""
        self._thread.join(1.0)  # a descendant that escaped may hold the pipe open
        return self._kept.decode(errors="replace")
