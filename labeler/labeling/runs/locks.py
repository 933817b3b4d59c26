"""Locks on a label set: between processes, and between machines.

In a folder they are `flock`s on files: the system frees those of a killed process, and they also
hold between machines on the common shared file systems. In an object store they are leases.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import filelock

from labeler.console import err
from labeler.labeling.writing.leases import POLL, LeaseTaken, hold_lease, lease_names
from labeler.labeling.writing.set_place import BUSY, SetPlace
from schemas import SoftshardsError
from schemas.atomic import remove_leftovers
from schemas.file_names import is_own_shard
from schemas.object_store import abort_uploads, delete, list_names
from schemas.remote import Remote
from schemas.set_paths import require_no_links

SET_LOCK = ".lock"


@contextlib.contextmanager
def rank_lock(place: SetPlace, rank: int, world_size: int) -> Iterator[None]:
    """Hold the lock of one rank; only one process of a rank labels at a time.

    Raises:
        SoftshardsError: another process holds it, or the folder holds a link.
    """
    if place.remote is not None:
        with _held_lease(place, _rank_file(rank, world_size)):
            yield
        return
    place.folder.mkdir(parents=True, exist_ok=True)
    require_no_links(place.folder)
    lock = filelock.FileLock(place.folder / _rank_file(rank, world_size), blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        other = f"another process of rank {rank}" if world_size > 1 else "another process"
        raise SoftshardsError(
            f"{other} is writing into this folder", path=place.folder, hint="wait, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def set_lock(place: SetPlace, purpose: str, *, whole: bool = False) -> Iterator[None]:
    """Wait for the lock under which a set is planned, appended to and closed.

    A set in an object store is pulled when the lock is held; publishing it is up to the caller.

    Args:
        place: the set's place.
        purpose: what the lock is for, as a verb, for the message while waiting.
        whole: pull the shards, too.
    """
    if place.remote is not None:
        with _held_lease(place, SET_LOCK, wait_to=purpose):
            place.pull(whole=whole)
            yield
        return
    require_no_links(place.folder)
    lock = filelock.FileLock(place.folder / SET_LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        err.print(f"waiting to {purpose}: another process is using {place.folder}")
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def exclusive_lock(place: SetPlace, purpose: str) -> Iterator[None]:
    """Hold all locks of a set, for work that no other process may see half done.

    Args:
        place: the set's place; one in an object store is pulled as a whole.
        purpose: as in `set_lock`.

    Raises:
        SoftshardsError: another process is labeling.
    """
    own = _rank_file(0, 1)
    with (
        rank_lock(place, 0, 1),
        set_lock(place, purpose, whole=True),
        contextlib.ExitStack() as held,
    ):
        if place.remote is not None:
            for name in lease_names(place.remote, f"{SET_LOCK}-"):
                if name != own:
                    held.enter_context(_held_lease(place, name))
        for path in place.folder.glob(".lock-*"):
            if path.name != own:
                try:
                    held.enter_context(filelock.FileLock(path).acquire(blocking=False))
                except filelock.Timeout as error:
                    raise SoftshardsError(
                        BUSY, path=place.folder, hint="wait, or stop it"
                    ) from error
        yield


@contextlib.contextmanager
def actor_lock(place: SetPlace, name: str) -> Iterator[None]:
    """Hold the lock of an actor, which shows other processes that it may still write.

    Raises:
        SoftshardsError: another process holds it.
    """
    if place.remote is not None:
        with _held_lease(place, _actor_file(name)):
            yield
        return
    with filelock.FileLock(place.folder / _actor_file(name), blocking=False):
        yield


def wait_for_actor(place: SetPlace, name: str, seconds: float) -> bool:
    """Wait until a killed actor can no longer write, and delete its lock.

    Returns:
        Whether it can no longer write; False if that is not certain after `seconds`.
    """
    if place.remote is not None:
        until = time.monotonic() + seconds
        while not _take_lease(place.remote, _actor_file(name)):
            if time.monotonic() > until:
                return False
            time.sleep(POLL)
        delete(place.remote, list_names(place.remote, f"{_actor_file(name)}."))
        return True
    path = place.folder / _actor_file(name)
    try:
        with filelock.FileLock(path, timeout=seconds):
            path.unlink(missing_ok=True)
    except filelock.Timeout:
        return False
    return True


def _take_lease(remote: Remote, name: str) -> bool:
    """Return whether a lease is free, or expires while this waits; it is free afterwards."""
    try:
        with hold_lease(remote, name):
            return True
    except LeaseTaken:
        return False


def wait_for_actors(place: SetPlace, seconds: float = 60.0) -> None:
    """Wait for the actors of an earlier run, which end soon after it was killed.

    Raises:
        SoftshardsError: one still runs.
    """
    prefix = _actor_file("")
    found = (
        lease_names(place.remote, prefix)
        if place.remote is not None
        else [path.name for path in place.folder.glob(f"{prefix}*")]
    )
    for name in found:
        if not wait_for_actor(place, name.removeprefix(prefix), seconds):
            raise SoftshardsError(
                "a teacher that an earlier run placed on a cluster may still write into this set",
                path=place.name,
                hint="wait, or stop it: `ray list actors` names it",
            )


def remove_abandoned_files(place: SetPlace, rank: int, world_size: int) -> None:
    """Delete what killed processes left: temporary files, unless another process is labeling.

    In an object store, uploads of this rank's shards that did not finish.
    """
    if place.remote is not None:
        abort_uploads(place.remote, lambda name: is_own_shard(name, rank, world_size))
        return
    own = _rank_file(rank, world_size)
    others = [filelock.FileLock(p) for p in place.folder.glob(".lock-*") if p.name != own]
    with contextlib.ExitStack() as held:
        try:
            for lock in others:
                held.enter_context(lock.acquire(blocking=False))
        except filelock.Timeout:
            return
        remove_leftovers(place.folder)


@contextlib.contextmanager
def _held_lease(place: SetPlace, name: str, *, wait_to: str | None = None) -> Iterator[None]:
    """Hold a lease, which is checked before anything is published."""
    assert place.remote is not None
    try:
        with hold_lease(place.remote, name, wait_to=wait_to) as lease:
            place.leases.append(lease)
            try:
                yield
            finally:
                place.leases.remove(lease)
    except LeaseTaken as error:
        raise SoftshardsError(
            f"{BUSY}: {error}", path=place.remote.url, hint="wait, or stop it"
        ) from error


def _actor_file(name: str) -> str:
    return f"{SET_LOCK}-actor-{name}"


def _rank_file(rank: int, world_size: int) -> str:
    return f".lock-{rank}-of-{world_size}"
