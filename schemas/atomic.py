"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.os_errors import explain_full_disk

TMP_PREFIX = ".tmp-"


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success fsync it and rename it into place.

    A crash at any moment leaves either the old file or the new one at `final`, never a part of
    one. On an exception the temporary file is removed and `final` is left as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that write the same file, even forks of one, must not share a temporary file.
    tmp = final.with_name(f"{TMP_PREFIX}{secrets.token_hex(4)}-{final.name}")
    try:
        yield tmp
        fsync(tmp)
        tmp.replace(final)
        fsync(final.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success fsync its files and rename it to `final`.

    An older `final` is replaced. A crash leaves the old folder, the new one, or (for the instant
    between two renames) none, but never a part of one.

    Raises:
        SoftshardsError: the disk is full.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    tmp = final.with_name(f"{TMP_PREFIX}{final.name}")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        with explain_full_disk(final.name, final.parent):
            yield tmp
            for path in [*tmp.rglob("*"), tmp]:
                fsync(path)
        if final.exists():
            old = final.with_name(f"{TMP_PREFIX}old-{final.name}")
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
            tmp.replace(final)
            shutil.rmtree(old)
        else:
            tmp.replace(final)
        fsync(final.parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def write_atomic(final: Path, data: bytes | str) -> None:
    """Write `data` to `final` atomically and durably."""
    with atomic_path(final) as tmp:
        tmp.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(directory: Path) -> list[Path]:
    """Delete the temporary files of killed writers in `directory` and return their paths.

    Call it only where no other process can be writing.
    """
    leftovers = sorted(directory.glob(f"**/{TMP_PREFIX}*"))
    for path in leftovers:
        path.unlink()
    return leftovers


def fsync(path: Path) -> None:
    """Flush a file or folder to disk so that it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
