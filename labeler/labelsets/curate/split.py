"""Split a label set into parts by a hash of each row's id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import polars as pl

from labeler.labelsets.common.rows import Mask
from schemas.errors import SoftshardsError

REST = "train"
"""The part that gets the remaining ids."""


@dataclass(frozen=True)
class Split:
    """Parts of a set by a hash of each row's id, so that a row's part does not depend on others.

    Attributes:
        shares: share of ids of each part; `REST` gets the remaining ids.
        seed: seed of the hash.
    """

    shares: dict[str, float]
    seed: int

    def masks(self, ids: pl.Series) -> dict[str, Mask]:
        """Return the rows of each part, bool [rows]."""
        distinct = ids.unique()
        draws = pl.Series([self._draw(name) for name in distinct], dtype=pl.Float64)
        at = ids.replace_strict(distinct, draws, return_dtype=pl.Float64).to_numpy()
        parts, low = {}, 0.0
        for name, share in self.shares.items():
            parts[name] = (low <= at) & (at < low + share)
            low += share
        return {REST: at >= low} | parts

    def _draw(self, name: str) -> float:
        """Return a number in [0, 1)."""
        bits = sha256(f"{self.seed}:{name}".encode()).digest()[:8]
        return (int.from_bytes(bits) >> 11) / 2**53


def parse_split(parts: Sequence[str], seed: int) -> Split | None:
    """Return the split of `--split NAME=SHARE ...`; None without one.

    Raises:
        SoftshardsError: a part has no name or share, or the shares leave nothing to `REST`.
    """
    shares: dict[str, float] = {}
    for text in parts:
        name, _, share = text.partition("=")
        hint = "give a name and a share between 0 and 1: --split heldout=0.05"
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise SoftshardsError(f"--split {text} has no share", hint=hint) from error
        if not name.isidentifier() or name == REST or not 0 < shares[name] < 1:
            raise SoftshardsError(f"--split {text} is not a valid part", hint=hint)
    if len(shares) < len(parts) or sum(shares.values()) >= 1:
        raise SoftshardsError("the parts of --split must differ, and leave something to `train`")
    return Split(shares, seed) if shares else None
