"""Check by the actual tokens, without a model, that labels belong to the stated positions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labeler.labelsets.exchange.parse_row import ParsedRow
from schemas.codec import PAD_ID
from schemas.errors import SoftshardsError

OFFSETS = (-1, 0, 1)
"""Offsets from the stated positions that are tried."""
ENOUGH = 20_000
"""Labels after which the counts suffice."""
MARGIN = 0.05
"""Least difference between the hit shares of two offsets that counts; three standard errors of a
share count if they are larger."""
PLAUSIBLE = 0.5
"""Least hit share of an offset that is preferred to the stated one: a model that hardly ever
expects the text gives no evidence."""
NO_TAIL = 1e-4
"""Mass outside the top-k below which a position looks as if it had no tail."""


@dataclass
class Evidence:
    """Counts over the first labels of a file.

    Attributes:
        labels: distributions counted.
        hits: by offset, the distributions that have the token there in their top-k.
        tried: by offset, the distributions that have a token there.
        without_tail: distributions whose top-k has all the mass without covering the vocabulary.
    """

    labels: int = 0
    hits: dict[int, int] = field(default_factory=lambda: dict.fromkeys(OFFSETS, 0))
    tried: dict[int, int] = field(default_factory=lambda: dict.fromkeys(OFFSETS, 0))
    without_tail: int = 0

    @property
    def suffices(self) -> bool:
        """True once enough labels are counted."""
        return self.labels >= ENOUGH

    def add(self, row: ParsedRow, vocab_size: int) -> None:
        """Count a row."""
        self.labels += len(row.positions)
        for offset in OFFSETS:
            tokens = row.tokens_at(offset)
            exists = tokens != PAD_ID
            hit = (row.ids == tokens[:, None]).any(axis=1) & exists
            self.hits[offset] += int(hit.sum())
            self.tried[offset] += int(exists.sum())
        if row.tail is None and row.ids.shape[1] < vocab_size:
            mass = np.exp(row.logprobs).sum(axis=1)
            self.without_tail += int((np.abs(mass - 1) < NO_TAIL).sum())

    def share(self, offset: int) -> float:
        """Return the share of labels with the token at `offset` in the top-k."""
        return self.hits[offset] / max(1, self.tried[offset])

    def shares_by_shift(self, shift: int) -> dict[str, float]:
        """Return the share of labels with the actual token in the top-k, by value of --shift.

        Args:
            shift: the one that the rows were read with.
        """
        return {str(shift + offset): round(self.share(offset), 4) for offset in OFFSETS}

    @property
    def best_offset(self) -> int:
        """Offset at which the labels fit; 0 unless another is clearly better."""
        best = max(OFFSETS, key=self.share)
        needed = max(MARGIN, 1.5 / np.sqrt(max(1, self.labels)))
        clear = self.share(best) >= max(PLAUSIBLE, self.share(0) + needed)
        return best if clear else 0

    @property
    def renormalized(self) -> bool:
        """True if every position's top-k has all the mass: the tail was divided out."""
        return self.labels >= 20 and self.without_tail == self.labels


def require_alignment(evidence: Evidence, path: Path, shift: int, allowed: Collection[str]) -> None:
    """Refuse labels that look shifted, or have lost their tail.

    Args:
        evidence: counts over the file.
        path: the file.
        shift: the shift that it was read with.
        allowed: problems to accept: `shift`, `renormalized`.

    Raises:
        SoftshardsError: naming the shift that the labels seem to have.
    """
    if (offset := evidence.best_offset) and "shift" not in allowed:
        raise SoftshardsError(
            f"the labels look shifted: the actual token is in the top-k of "
            f"{evidence.share(0):.1%} of labels with --shift {shift}, of "
            f"{evidence.share(offset):.1%} with --shift {shift + offset}",
            path=path,
            hint=f"give --shift {shift + offset}, or, if you know better, --allow shift",
        )
    if evidence.renormalized and "renormalized" not in allowed:
        raise SoftshardsError(
            "the probabilities of every top-k add up to 1: the tail was divided out, and the mass "
            "of the other tokens cannot be recovered",
            path=path,
            hint="get the original values, or import them without a tail: --allow renormalized",
        )
