"""Leases on a label set in an object store, where there are no file locks.

A lease is an object `NAME.000007`, written only if no object of that name exists; the one with the
highest number counts. Its holder writes it again every `RENEW` seconds, and marks it as free at the
end. A process takes over, by creating the next number, from a holder that is free, that died on
this machine, or whose object was not renewed for `EXPIRY` seconds of the watcher's own clock. So no
two machines need to agree on the time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from labeler.console import err
from schemas import SoftshardsError
from schemas.object_store import (
    create,
    delete,
    list_names,
    put,
    require_conditional_writes,
)
from schemas.remote import Remote, origin

RENEW = 10.0
EXPIRY = 60.0
POLL = 1.0
HELD: set[str] = set()
"""Tokens of the leases that this process holds. One that was given up while the store could not be
reached is not marked as free, and its holder still runs."""
CONDITIONAL: set[tuple[str, str]] = set()
"""Buckets that were seen to refuse a second write of one object."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Holder(BaseModel):
    """The content of a lease's object.

    Attributes:
        token: random, of this acquisition.
        host: name of the machine, for people.
        machine: identifies the process numbers that `pid` is one of; empty if that is not known.
        pid, started: the process.
        renewed: times that the object was written again.
        free: the holder is done.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    renewed: int = 0
    free: bool = False


class LeaseTaken(Exception):
    """Another process holds the lease; its text names it."""


class Lease:
    """A lease that this process holds and renews in a thread; `hold_lease` makes one."""

    def __init__(self, remote: Remote, name: str, number: int, holder: Holder) -> None:
        self._remote, self._name, self._number, self._holder = remote, name, number, holder
        self._object = _object(name, number)
        self._safe_until, self._lost, self._failing = _now() + EXPIRY / 2, False, False
        HELD.add(holder.token)
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {name}", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Check that no other process has taken over; to be called before anything is published.

        Raises:
            SoftshardsError: one has, because this process could not renew the lease in time.
        """
        if _now() >= self._safe_until:
            self._renew()
        if self._lost:
            raise SoftshardsError(
                "another process has taken over, because this one could not reach the store, or "
                f"was stopped, for {EXPIRY:.0f} s; what was journaled is safe",
                path=self._remote.url,
                hint="run the same command again once the other has finished: it resumes",
            )

    def release(self) -> None:
        """Let the next process have it."""
        self._ended.set()
        HELD.discard(self._holder.token)
        self._thread.join(RENEW)
        if not self._failing:  # else the store is gone, and the lease expires
            with contextlib.suppress(SoftshardsError):
                self._renew(free=True)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW):
            try:
                self._renew()
            except SoftshardsError:  # tried again soon; `require` tells
                self._failing = True

    def _renew(self, *, free: bool = False) -> None:
        with self._writing:
            started = _now()
            changes = {"renewed": self._holder.renewed + 1, "free": free}
            self._holder = self._holder.model_copy(update=changes)
            put(self._remote, self._object, _as_bytes(self._holder), attempts=1)
            self._failing = False
            if started >= self._safe_until:  # it may have expired meanwhile
                self._lost |= _numbers(self._remote, self._name)[-1:] != [self._number]
            self._safe_until = started + EXPIRY / 2


@contextlib.contextmanager
def hold_lease(remote: Remote, name: str, *, wait_to: str | None = None) -> Iterator[Lease]:
    """Hold a lease.

    Args:
        remote: the location of the set.
        name: the lease's name.
        wait_to: wait while another process holds it, in order to do this (a verb).

    Raises:
        LeaseTaken: another process holds it, and `wait_to` is None.
        SoftshardsError: the store fails.
    """
    lease = _acquire(remote, name, wait_to)
    try:
        yield lease
    finally:
        lease.release()


def lease_names(remote: Remote, prefix: str) -> list[str]:
    """Return the names of the leases that begin with `prefix`, held or free."""
    objects = list_names(remote, prefix)
    return sorted({name.rpartition(".")[0] for name in objects})


def _acquire(remote: Remote, name: str, wait_to: str | None) -> Lease:
    seen: tuple[int, bytes] | None = None
    since, announced = 0.0, False
    while True:
        numbers = _numbers(remote, name)
        newest = numbers[-1] if numbers else 0
        content = _read(remote, name, newest) if newest else b""
        if content is None:  # its successor deleted it this moment
            continue
        holder = _parse(content)
        if seen != (newest, content):
            if seen is not None and seen[0] == newest and wait_to is None:
                raise LeaseTaken(_describe(holder))  # it was renewed before our eyes
            seen, since = (newest, content), _now()
        alive = _is_alive(holder) if numbers else False
        if alive is False or _now() - since > EXPIRY:
            number = newest + 1
            mine = _this_process()
            try:
                create(remote, _object(name, number), _as_bytes(mine))
            except FileExistsError:
                continue
            if origin(remote.url) not in CONDITIONAL:
                other = _as_bytes(mine.model_copy(update={"renewed": -1}))
                require_conditional_writes(remote, _object(name, number), other)
                CONDITIONAL.add(origin(remote.url))
            if _numbers(remote, name)[-1:] == [number]:
                delete(remote, [_object(name, old) for old in numbers])
                return Lease(remote, name, number, mine)
            delete(remote, [_object(name, number)])  # of a number that was used up long ago
            continue
        if alive and wait_to is None:
            raise LeaseTaken(_describe(holder))
        if not announced:
            announced = True
            what = f"waiting to {wait_to}" if wait_to else "checking whether it still runs"
            err.print(f"{what}: {_describe(holder)} is using {remote.url}")
        time.sleep(POLL)


def _numbers(remote: Remote, name: str) -> list[int]:
    """Return the numbers of a lease's objects, ascending."""
    ends = (found.removeprefix(f"{name}.") for found in list_names(remote, f"{name}."))
    return sorted(int(end) for end in ends if end.isdecimal())


def _object(name: str, number: int) -> str:
    return f"{name}.{number:06d}"


def _read(remote: Remote, name: str, number: int) -> bytes | None:
    try:
        return remote.read(_object(name, number))
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> Holder | None:
    """Return the holder; None for an object that is not one: only time tells if it is held."""
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
        return None


def _is_alive(holder: Holder | None) -> bool | None:
    """Return whether the holder still needs the lease; None where this process cannot know."""
    if holder is None:
        return None
    if holder.free:
        return False
    here = _this_process()
    if not here.machine or holder.machine != here.machine:
        return None
    if holder.pid == here.pid and holder.started == here.started:
        return holder.token in HELD
    return _start_of(holder.pid) == holder.started


def _this_process() -> Holder:
    machine = ""
    with contextlib.suppress(OSError):  # on Linux; elsewhere, a killed process's lease expires
        machine = f"{BOOT.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return Holder(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=machine,
        pid=os.getpid(),
        started=_start_of(os.getpid()),
    )


def _start_of(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie no longer writes


def _now() -> float:
    """Return seconds that also count while the machine sleeps, where it has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _describe(holder: Holder | None) -> str:
    return "another process" if holder is None else f"process {holder.pid} on {holder.host}"


def _as_bytes(holder: Holder) -> bytes:
    return (holder.model_dump_json() + "\n").encode()
