"""What surrounds a run: one process a folder, and an orderly end on signals."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from schemas.errors import SoftshardsError


@contextlib.contextmanager
def only_one(out: Path, *, enabled: bool) -> Iterator[None]:
    """Hold the run's folder for this process; a killed holder lets go of it."""
    if not enabled:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise SoftshardsError("another `trainer train` is writing here", path=out) from error


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of dying of them; the second one does what it always did."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: FrameType | None) -> None:
        caught.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
