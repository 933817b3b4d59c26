"""Are a file's labels where they are said to be? Told by the actual tokens, with no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labeler.labelsets.exchange.parse_row import Foreign
from schemas import PAD_ID, SoftshardsError

SHIFTS = (-1, 0, 1)
"""Places off what is stated that are tried."""
ENOUGH = 20_000
"""Labels after which the counts are believed."""
MARGIN = 0.05
"""A place must have the actual token in the top-k so much more often than the one stated, and by
three standard errors of a share, to be believed instead."""
PLAUSIBLE = 0.5
"""And at least so often: the place of a model that hardly ever expects the text cannot be told."""
WHOLE = 1e-4
"""Mass outside the top-k below which a position looks as if there were none."""


@dataclass
class Evidence:
    """Counts over the first labels of a file.

    Attributes:
        labels: distributions looked at.
        hits: by place off what is stated, those with the token there in their top-k.
        tried: by place, those with a token there.
        whole: those whose top-k has all the mass, without covering the vocabulary.
    """

    labels: int = 0
    hits: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SHIFTS, 0))
    tried: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SHIFTS, 0))
    whole: int = 0

    @property
    def enough(self) -> bool:
        """Whether no more need be looked at."""
        return self.labels >= ENOUGH

    def add(self, row: Foreign, vocab_size: int) -> None:
        """Count a row."""
        self.labels += len(row.positions)
        for shift in SHIFTS:
            tokens = row.tokens_at(shift)
            there = tokens != PAD_ID
            hit = (row.ids == tokens[:, None]).any(axis=1) & there
            self.hits[shift] += int(hit.sum())
            self.tried[shift] += int(there.sum())
        if row.tail is None and row.ids.shape[1] < vocab_size:
            mass = np.exp(row.logprobs).sum(axis=1)
            self.whole += int((np.abs(mass - 1) < WHOLE).sum())

    def share(self, shift: int) -> float:
        """Share of labels with the actual token in the top-k, were they `shift` places off."""
        return self.hits[shift] / max(1, self.tried[shift])

    @property
    def better(self) -> int:
        """The place off what is stated where the labels fit; 0 where none is clearly better."""
        best = max(SHIFTS, key=self.share)
        needed = max(MARGIN, 1.5 / np.sqrt(max(1, self.labels)))
        believed = self.share(best) >= max(PLAUSIBLE, self.share(0) + needed)
        return best if believed else 0

    @property
    def renormalized(self) -> bool:
        """Whether every position's top-k has all the mass: the tail was divided out."""
        return self.labels >= 20 and self.whole == self.labels


def judge(evidence: Evidence, path: Path, stated: int, allow: Sequence[str]) -> None:
    """Refuse labels that do not stand where they are said to, or have lost their tail.

    Args:
        evidence: of the file `path`.
        stated: the shift it was read with.
        allow: what is not to be refused: `shift`, `renormalized`.

    Raises:
        SoftshardsError: saying where they seem to stand.
    """
    if (off := evidence.better) and "shift" not in allow:
        raise SoftshardsError(
            f"the labels look shifted: the actual token is in the top-k of "
            f"{evidence.share(0):.1%} of labels under --shift {stated}, of "
            f"{evidence.share(off):.1%} under --shift {stated + off}",
            path=path,
            hint=f"give --shift {stated + off}, or, if you know better, --allow shift",
        )
    if evidence.renormalized and "renormalized" not in allow:
        raise SoftshardsError(
            "the probabilities of every top-k add up to 1: somebody has divided the tail out, and "
            "how much the teacher thought of other tokens cannot be known any more",
            path=path,
            hint="get the values before that, or import them without a tail: --allow renormalized",
        )


def shares(evidence: Evidence, stated: int) -> dict[str, float]:
    """By --shift, how often the actual token is in the top-k."""
    return {str(stated + off): round(evidence.share(off), 4) for off in SHIFTS}
