"""Limits on what a file of a set may expand to, checked before memory is taken for it.

Compression and run lengths let a few kilobytes state gigabytes. What a set's own writer makes stays
far below these limits; docs/security.md lists them.
"""

from __future__ import annotations

import os

from schemas.errors import SoftshardsError

LARGEST_COUNT = 1 << 53
"""Largest number of rows, tokens, labels or units: up to here JSON parsers keep every number."""
LARGEST_UNITS = 1 << 20
"""Most units of a set, each with a shard of its own: at 131,072 labels each, 137 billion labels."""
LARGEST_VOCABULARY = 1 << 22
"""Most ids of a tokenizer; the largest in use have 260,000."""
LARGEST_WIDTH = 1 << 17
"""Most dimensions of a hidden state; the largest in use have some 20,000."""

SIZE_LIMIT = "SOFTSHARDS_SIZE_LIMIT_MB"
"""Environment variable: MB that any row group may expand to, besides `EXPANSION` per byte."""
EXPANSION = 64
"""Bytes in memory per stored byte. Labels take two to three; repetitive text, up to some twenty."""
CELLS = 24
"""Cells of the padded lists of ids per stored byte. Full lists have one per 1.7 bytes or more."""
BYTES_PER_CELL = 64
"""Memory that a cell takes while labels are decoded, checked and collated."""
INDEX_ROW_BYTES = 32
"""Fewest bytes per row of the index: a hash of 32 random bytes does not compress."""


def base_bytes() -> int:
    """Return what a row group of any size may expand to, in bytes.

    Raises:
        SoftshardsError: the environment variable is not a number of MB.
    """
    text = os.environ.get(SIZE_LIMIT, "64")
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise SoftshardsError(f"{SIZE_LIMIT}={text}: not a number of MB", hint="set it to 64")
    return int(text) << 20


def require_expansion(what: str, needed: int, stored: int) -> None:
    """Refuse stored bytes that would take too much memory.

    Args:
        what: what expands, for the message.
        needed: bytes in memory, or an upper bound.
        stored: bytes in the file.

    Raises:
        ValueError: the limit is exceeded.
    """
    allowed = base_bytes() + EXPANSION * stored
    if needed > allowed:
        raise ValueError(
            f"{what} would take {needed:,} bytes, and {stored:,} stored bytes may take {allowed:,} "
            f"({SIZE_LIMIT} raises the limit)"
        )


def require_cells(positions: int, width: int, stored: int) -> None:
    """Refuse labels whose lists would take too much memory once padded to one width.

    Args:
        positions: labeled positions of a row group.
        width: the longest list that the set may have, in ids.
        stored: bytes of the row group in the file.

    Raises:
        ValueError: the limit is exceeded.
    """
    allowed = base_bytes() // BYTES_PER_CELL + CELLS * stored
    if positions * width > allowed:
        raise ValueError(
            f"{positions:,} labels of {width:,} ids are too many for {stored:,} stored bytes "
            f"({SIZE_LIMIT} raises the limit)"
        )
