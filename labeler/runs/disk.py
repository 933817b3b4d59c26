"""A full disk as an error that the user can act on."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from schemas import SoftshardsError


@contextlib.contextmanager
def full_disk_explained(what: str, out: Path) -> Iterator[None]:
    """Within, `what` is written to `out`.

    Raises:
        SoftshardsError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SoftshardsError(
            f"the disk is full: {what} could not be written; finished units are safe",
            path=out,
            mend="free some space and run the same command: it goes on from there",
        ) from error
