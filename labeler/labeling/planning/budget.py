"""Disk space of a label set, estimated before it is labeled, and the size of its units."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from schemas import SoftshardsError

BYTES_PER_LOGPROB = {"plain": 2.8, "compact": 1.7}
"""Bytes per stored id and logprob, by codec; `labeler inspect` prints the actual figure."""
BYTES_PER_DRAW = 0.6
"""Bytes per drawn id: many are drawn more than once."""
BYTES_PER_POSITION = 8.0
"""Bytes per position beside them: tail, actual token, spans, text."""
STATES_SAMPLE = 8
"""Hidden states per dimension that bases are fitted to and measured on, a quarter for the latter.
A basis takes the bytes of four float16 states per dimension: smaller sets would gain nothing."""
UNIT_BYTES = 1 << 30
"""Memory for the ids and logprobs of one unit."""


def estimate_bytes(labels: int, *, k: int, draws: int, codec: Literal["plain", "compact"]) -> int:
    """Estimate the bytes that `labels` label positions take on disk."""
    ids = k * BYTES_PER_LOGPROB[codec] + draws * BYTES_PER_DRAW
    return int(labels * (ids + BYTES_PER_POSITION))


def fits_states_codec(labels: int, width: int | None) -> bool:
    """Return whether so many labels are enough for the codec `states/2` at this width."""
    return width is None or labels >= STATES_SAMPLE * width


def free_bytes(out: Path) -> int:
    """Return the free bytes of the disk that holds `out`, which need not exist."""
    path = out.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def require_space(needed: int, out: Path) -> None:
    """Refuse a label set that cannot fit on the disk.

    Args:
        needed: estimated bytes.
        out: its folder.

    Raises:
        SoftshardsError: the estimate is more than the free space.
    """
    free = free_bytes(out)
    if needed > free:
        raise SoftshardsError(
            f"the label set needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            path=out,
            hint="lower --k, label less, or choose another disk for --out",
        )


def labels_per_unit(unit_labels: int, k: int, states: int = 0) -> int:
    """Return `unit_labels`, or fewer where that many labels would not fit in memory.

    A unit's labels are in memory twice: one unit is labeled while another is written.

    Args:
        unit_labels: as asked for.
        k: ids per label.
        states: numbers in the hidden states of a label.
    """
    return max(1, min(unit_labels, UNIT_BYTES // (8 * k + 4 * states)))
