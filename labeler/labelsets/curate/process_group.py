"""Run a process so that it ends with all that it has started, and its output stays small."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import psutil

BLOCK = 1 << 12
SET_CHILD_SUBREAPER, GET_CHILD_SUBREAPER = 36, 37
"""Requests of prctl(2)."""
ORPHAN_SECONDS = 5.0
"""Time to kill orphans: one that forks all the time may not be caught."""

_lock = threading.Lock()
_own: set[int] = set()
"""Processes that are no orphans: those of `start_group`, and the children from before."""


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Become the parent of descendants that lose theirs, so that `kill_group` finds them.

    A daemon forks twice and begins a session of its own; without this, process 1 becomes its
    parent. It needs Linux; elsewhere a daemon is not found. Meanwhile, no other thread may start
    processes in sessions of their own.
    """
    if sys.platform != "linux":
        yield
        return
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    if not before.value:  # inside another such context, children may be orphans
        _own.update(child.pid for child in psutil.Process().children())
    prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def start_group(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process in a session and a process group of its own.

    Args:
        words: the command.
        options: of `subprocess.Popen`.
    """
    with _lock:  # no other thread may take the new process for an orphan
        process = subprocess.Popen(words, start_new_session=True, **options)
        _own.add(process.pid)
    return process


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of `start_group` and all that it has started.

    That includes descendants that have left its process group, and, inside `adopting_orphans`,
    those that have left its tree.
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
    _own.discard(process.pid)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while _kill_orphans() and time.monotonic() < deadline:
        pass  # their children are orphans now


def _kill_orphans() -> bool:
    """Kill the orphans that this process has adopted; return whether there were any."""
    found = False
    with _lock:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error, OSError):
                if child.pid not in _own and os.getsid(child.pid) != os.getsid(0):
                    child.kill()
                    os.waitpid(child.pid, 0)
                    found = True
    return found


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
