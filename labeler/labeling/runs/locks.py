"""Who may do what at the same time in one label set's folder.

Locks are `flock`s on files: the system frees those of a killed process, and they also hold between
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


@contextlib.contextmanager
def own_rank(out: Path, rank: int, world_size: int) -> Iterator[None]:
    """Be the one process of this rank, for as long as it labels.

    Raises:
        SoftshardsError: there is another one.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / _rank_lock(rank, world_size), blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        which = f"another process of rank {rank}" if world_size > 1 else "another process"
        raise SoftshardsError(
            f"{which} is writing into this folder", path=out, hint="wait, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_at_a_time(out: Path, work: str) -> Iterator[None]:
    """Wait until no other process begins, appends or closes; `work` says what for."""
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        err.print(f"waiting to {work}: another process is at it in {out}")
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def alone(out: Path, work: str) -> Iterator[None]:
    """Be the only process at a set, for work that no other may see half done.

    Raises:
        SoftshardsError: another one labels.
    """
    with own_rank(out, 0, 1), one_at_a_time(out, work), contextlib.ExitStack() as held:
        for path in out.glob(".lock-*"):
            if path.name != _rank_lock(0, 1):
                try:
                    held.enter_context(filelock.FileLock(path).acquire(blocking=False))
                except filelock.Timeout as error:
                    raise SoftshardsError(
                        "another process is writing into this folder",
                        path=out,
                        hint="wait, or stop it",
                    ) from error
        yield


def remove_leftovers_if_alone(out: Path, rank: int, world_size: int) -> None:
    """Delete what killed processes left, unless a living one may still be writing it."""
    own = _rank_lock(rank, world_size)
    others = [filelock.FileLock(p) for p in out.glob(".lock-*") if p.name != own]
    with contextlib.ExitStack() as held:
        try:
            for lock in others:
                held.enter_context(lock.acquire(blocking=False))
        except filelock.Timeout:
            return
        remove_leftovers(out)


def _rank_lock(rank: int, world_size: int) -> str:
    return f".lock-{rank}-of-{world_size}"
