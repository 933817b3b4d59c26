"""What the operating system refuses, as errors that the user can act on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import SoftshardsError

FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "free some space and run the same command: it goes on from there"


@contextlib.contextmanager
def full_disk_explained(what: str, out: Path) -> Iterator[None]:
    """Within, `what` is written to `out`.

    Raises:
        SoftshardsError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        message = f"the disk is full: {what} could not be written; what was finished is safe"
        raise SoftshardsError(message, path=out, hint=AGAIN) from error


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk is at the bottom of an error.

    `torch.save` raises a RuntimeError over it, safetensors an error of its own that quotes it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def explained(error: OSError) -> SoftshardsError | None:
    """An error about a path, or a full disk, in the user's terms; None for all others."""
    if error.errno in FULL:
        path = None if error.filename is None else os.fsdecode(error.filename)
        return SoftshardsError("the disk is full", path=path, hint=AGAIN)
    if error.filename is None:
        return None
    hint = "check the path, and that you may write there"
    what = error.strerror or str(error)
    return SoftshardsError(what, path=os.fsdecode(error.filename), hint=hint)
