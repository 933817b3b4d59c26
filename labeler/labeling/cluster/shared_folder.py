"""Check that the actors and the driver write into the same folder."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from labeler.labeling.writing.set_place import SetPlace
from schemas import SoftshardsError
from schemas.journal import finished_unit

CACHED_SECONDS = 90.0
"""Longest time for which network file systems keep from a reader what others have written."""
LOOK_SECONDS = 1.0


@contextlib.contextmanager
def shared_token(place: SetPlace, prefix: str) -> Iterator[str | None]:
    """Yield the name of a file in the set's folder by which nodes know that they share it."""
    if place.remote is not None:
        yield None
        return
    token = f"{prefix}ray-{secrets.token_hex(6)}"
    path = place.folder / token
    path.touch()
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def require_shared(out: Path, token: str, node: str) -> None:
    """Check that the folder of the set is the driver's own, by a file that the driver wrote there.

    Raises:
        SoftshardsError: it is not.
    """
    try:
        is_shared = (out / token).exists()
    except OSError:
        is_shared = False
    if not is_shared:
        raise SoftshardsError(
            f"node {node} does not see the files that the driver writes into this folder",
            path=out,
            hint="use a folder on a file system that all nodes share, under the same path, or a "
            "URL of an object store",
        )


def require_seen(place: SetPlace, done: Mapping[int, str], seconds: float = CACHED_SECONDS) -> None:
    """Wait until the driver sees the units that actors have journaled.

    Args:
        place: the set's place.
        done: the units, and the node of each.
        seconds: how long to wait.

    Raises:
        SoftshardsError: some cannot be seen: their node has written them elsewhere.
    """
    until = time.monotonic() + seconds
    left = sorted(done)
    while True:
        place.pull()
        left = [n for n in left if finished_unit(place.folder, n, place.sizes) is None]
        if not left:
            return
        if time.monotonic() > until:
            break
        time.sleep(LOOK_SECONDS)
    nodes = ", ".join(sorted({done[unit] for unit in left}))
    units = ", ".join(str(unit + 1) for unit in left[:8]) + (", ..." if left[8:] else "")
    raise SoftshardsError(
        f"node {nodes} journaled units that are not here: {units}",
        path=place.name,
        hint="the set's folder must be on a file system that all nodes share for as long as the "
        "run takes; the same command labels these units again",
    )
