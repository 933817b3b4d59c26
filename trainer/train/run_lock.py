"""One process per run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import SoftshardsError
from trainer.run_files import LOCK


@contextmanager
def run_lock(out: Path, command: str) -> Iterator[None]:
    """Hold a folder for this process. When the process dies, the operating system releases it.

    Args:
        out: the folder; it is made if it is missing.
        command: the command that writes here, for the message (`trainer train`).

    Raises:
        SoftshardsError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise SoftshardsError(f"another `{command}` is writing here", path=out) from error


def wait_for_lock(out: Path, seconds: float) -> None:
    """Wait until no process holds the folder, or the time is over."""
    try:
        with FileLock(out / LOCK, timeout=seconds):
            pass
    except Timeout:
        return
