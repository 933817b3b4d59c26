"""Match the ids of two top-k lists, for all positions at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.codec import PAD_ID


@dataclass(frozen=True, kw_only=True)
class Match:
    """The places of the ids of lists [n, k] in other lists [n, m] of the same positions.

    Attributes:
        column: int64 [n, k], the id's column in the other list; 0 where it is missing.
        found: bool [n, k], true where the other list has the id.
        unmatched: bool [n, m], true for ids of the other list that the first one lacks.
    """

    column: NDArray[np.int64]
    found: NDArray[np.bool_]
    unmatched: NDArray[np.bool_]

    def values(self, others: NDArray[np.floating], missing: float) -> NDArray[np.float64]:
        """Return the other list's values [n, m] at each id [n, k]; `missing` where it has none."""
        taken = np.take_along_axis(others.astype(np.float64), self.column, axis=1)
        return np.where(self.found, taken, missing)


def match(ids: NDArray[np.int32], others: NDArray[np.int32]) -> Match:
    """Look up each of `ids` [n, k] in the same row of `others` [n, m]; PAD_ID never matches."""
    n, m = others.shape
    order = np.argsort(others, axis=1)
    # One sorted array for all rows: each row's ids are lifted above the ids of the row before.
    lift = np.arange(n)[:, None] * (int(max(ids.max(initial=0), others.max(initial=0))) + 2)
    lifted = (np.take_along_axis(others, order, axis=1) + lift).ravel()
    wanted = (ids + lift).ravel()
    place = np.minimum(np.searchsorted(lifted, wanted), n * m - 1)
    found = (lifted[place] == wanted).reshape(ids.shape) & (ids != PAD_ID)
    sorted_column = np.where(found, place.reshape(ids.shape) - np.arange(n)[:, None] * m, 0)
    column = np.take_along_axis(order, sorted_column, axis=1)
    unmatched = others != PAD_ID
    rows, columns = np.nonzero(found)
    unmatched[rows, column[rows, columns]] = False
    return Match(column=column, found=found, unmatched=unmatched)
