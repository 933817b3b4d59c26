"""A row group, the unit in which sets are read and verified, and the rows a view keeps of it."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.journal import ByteRange
from schemas.manifest import Count, Digest, Model


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """One row group of a label set.

    Attributes:
        shard: path of the shard, relative to the set.
        index: the row group's number in the shard.
        bytes: its byte range in the file, with row, label and token counts and the hash.
        footer: the byte range of the shard's footer, the same for all its row groups.
        kept: the rows that a view keeps; None where it is all of them.
    """

    shard: str
    index: int
    bytes: ByteRange
    footer: ByteRange
    kept: Kept | None = None

    @property
    def rows(self) -> int:
        """Number of sequences to read."""
        return (self.kept or self.bytes).rows

    @property
    def labels(self) -> int:
        """Number of labeled positions in these rows."""
        return (self.kept or self.bytes).labels

    @property
    def tokens(self) -> int:
        """Number of tokens in these rows, labeled or not."""
        return (self.kept or self.bytes).tokens


class Kept(Model):
    """The rows of one row group that a view keeps.

    Attributes:
        shard: path of the shard, relative to the set.
        row_group: the row group's number in the shard.
        sha256: hash of the row group's bytes.
        rows: number of rows kept.
        labels: number of labels in these rows.
        tokens: number of tokens in these rows.
        bits: base64 of one bit per row, the first row in the highest bit of the first byte.
    """

    shard: str
    row_group: Count
    sha256: Digest
    rows: Count
    labels: Count
    tokens: Count
    bits: str

    @classmethod
    def of(
        cls,
        group: RowGroup,
        mask: NDArray[np.bool_],
        *,
        n_labels: NDArray[np.integer],
        n_tokens: NDArray[np.integer],
    ) -> Kept:
        """Select rows of a row group, or of the rows that a view already keeps of it.

        Args:
            group: the row group.
            mask: bool [group.rows], true for the rows to keep.
            n_labels: labels per row, [group.rows].
            n_tokens: tokens per row, [group.rows].
        """
        stored = group.bytes.rows
        bits = np.ones(stored, bool) if group.kept is None else group.kept.mask(stored)
        bits[bits] = mask
        return cls(
            shard=group.shard,
            row_group=group.index,
            sha256=group.bytes.sha256,
            rows=int(mask.sum()),
            labels=int(n_labels[mask].sum()),
            tokens=int(n_tokens[mask].sum()),
            bits=packed_bits(bits),
        )

    def mask(self, rows: int) -> NDArray[np.bool_]:
        """Return the mask of kept rows, bool [rows], for a row group of `rows` rows.

        Raises:
            ValueError: the bits do not fit this number of rows.
        """
        packed = np.frombuffer(base64.b64decode(self.bits, validate=True), np.uint8)
        mask = np.unpackbits(packed).astype(bool)
        if len(packed) != -(-rows // 8) or mask[rows:].any() or mask.sum() != self.rows:
            raise ValueError(f"the view's bits do not fit {rows} rows")
        return mask[:rows]


def packed_bits(mask: NDArray[np.bool_]) -> str:
    """Return a mask, bool [rows], as `Kept.bits`."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()
