"""Locks on a label set's folder.

They are `flock`s on files: the system frees those of a killed process, and they also hold between
machines on the common shared file systems.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from labeler.console import err
from schemas import SoftshardsError
from schemas.atomic import remove_leftovers
from schemas.set_paths import require_no_links


@contextlib.contextmanager
def rank_lock(out: Path, rank: int, world_size: int) -> Iterator[None]:
    """Hold the lock of one rank; only one process of a rank labels at a time.

    Raises:
        SoftshardsError: another process holds it, or the folder holds a link.
    """
    out.mkdir(parents=True, exist_ok=True)
    require_no_links(out)
    lock = filelock.FileLock(out / _rank_file(rank, world_size), blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        other = f"another process of rank {rank}" if world_size > 1 else "another process"
        raise SoftshardsError(
            f"{other} is writing into this folder", path=out, hint="wait, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def set_lock(out: Path, purpose: str) -> Iterator[None]:
    """Wait for the lock under which a set is planned, appended to and closed.

    Args:
        out: the set's folder.
        purpose: what the lock is for, as a verb, for the message while waiting.
    """
    require_no_links(out)
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        err.print(f"waiting to {purpose}: another process is using {out}")
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def exclusive_lock(out: Path, purpose: str) -> Iterator[None]:
    """Hold all locks of a set, for work that no other process may see half done.

    Args:
        out: the set's folder.
        purpose: as in `set_lock`.

    Raises:
        SoftshardsError: another process is labeling.
    """
    with rank_lock(out, 0, 1), set_lock(out, purpose), contextlib.ExitStack() as held:
        for path in out.glob(".lock-*"):
            if path.name != _rank_file(0, 1):
                try:
                    held.enter_context(filelock.FileLock(path).acquire(blocking=False))
                except filelock.Timeout as error:
                    raise SoftshardsError(
                        "another process is writing into this folder",
                        path=out,
                        hint="wait, or stop it",
                    ) from error
        yield


def remove_abandoned_files(out: Path, rank: int, world_size: int) -> None:
    """Delete temporary files of killed processes, unless another process is labeling."""
    own = _rank_file(rank, world_size)
    others = [filelock.FileLock(p) for p in out.glob(".lock-*") if p.name != own]
    with contextlib.ExitStack() as held:
        try:
            for lock in others:
                held.enter_context(lock.acquire(blocking=False))
        except filelock.Timeout:
            return
        remove_leftovers(out)


def _rank_file(rank: int, world_size: int) -> str:
    return f".lock-{rank}-of-{world_size}"
