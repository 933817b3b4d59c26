"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TMP_PREFIX = ".tmp-"
_OURS = secrets.token_hex(4)
"""Two processes that write one file at once do not write into each other's temporary one."""


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success fsync it and rename it into place.

    A crash at any moment leaves either the old file or the new one at `final`, never a part of
    one. On an exception the temporary file is removed and `final` is left as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    tmp = final.with_name(f"{TMP_PREFIX}{_OURS}-{final.name}")
    try:
        yield tmp
        fsync(tmp)
        tmp.replace(final)
        fsync(final.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_atomic(final: Path, data: bytes | str) -> None:
    """Write `data` to `final` atomically and durably."""
    with atomic_path(final) as tmp:
        tmp.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(directory: Path) -> list[Path]:
    """Delete what killed writers left in `directory`; return what was deleted.

    Only for one that knows that nobody else is writing there.
    """
    leftovers = sorted(directory.glob(f"**/{TMP_PREFIX}*"))
    for path in leftovers:
        path.unlink()
    return leftovers


def fsync(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
