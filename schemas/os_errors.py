"""Errors of the operating system in terms that the user can act on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import SoftshardsError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SPACE = "free some space and run the same command again: it resumes where it stopped"


@contextlib.contextmanager
def explain_full_disk(what: str, out: Path) -> Iterator[None]:
    """Turn a full disk into a clear error while `what` is written to `out`.

    Raises:
        SoftshardsError: the disk, or the user's quota, is full.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        message = f"the disk is full: {what} could not be written; finished work is safe"
        raise SoftshardsError(message, path=out, hint=FREE_SPACE) from error


def is_full_disk(error: BaseException | None) -> bool:
    """Check whether an error, or one that led to it, means that the disk is full.

    `torch.save` raises a RuntimeError over it, safetensors an error of its own that quotes it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def leave_closed_pipe() -> int:
    """Make what is left of the output go nowhere, after a reader such as `head` has closed it.

    Returns:
        The exit code of programs that SIGPIPE ends.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 128 + signal.SIGPIPE


def as_user_error(error: OSError) -> SoftshardsError | None:
    """Return an error about a path or a full disk in the user's terms; None for any other."""
    if error.errno in DISK_FULL:
        path = None if error.filename is None else os.fsdecode(error.filename)
        return SoftshardsError("the disk is full", path=path, hint=FREE_SPACE)
    if error.filename is None:
        return None
    hint = "check the path and its permissions"
    what = error.strerror or str(error)
    return SoftshardsError(what, path=os.fsdecode(error.filename), hint=hint)
