"""The rows of a label set that stand out, collected row group by row group."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict, cast

import numpy as np
import polars as pl

from schemas.arrow import KEY_COLUMNS
from schemas.ngrams import repetition

WORST = 5
"""Rows kept per kind."""
SHOWN = 24
"""Labeled tokens kept per row, to show."""
NGRAM = 4

BY = {
    "highest NLL": ("mean_nll", True),
    "lowest coverage": ("coverage", False),
    "most repetition": ("repetition", True),
    "longest": ("n_tokens", True),
}
"""The ways to stand out: the column, and whether large values stand out."""


class OutlierRow(TypedDict):
    """A row that stands out, as JSON values."""

    id: str
    chunk: int
    sample: int
    n_tokens: int
    n_labels: int
    mean_nll: float | None
    coverage: float | None
    repetition: float
    tokens: list[int]


@dataclass
class Outliers:
    """The `WORST` rows of each kind in `BY`, among all rows so far."""

    _kept: dict[str, pl.DataFrame] = field(default_factory=dict)

    def add(self, rows: pl.DataFrame) -> None:
        """Consider some rows.

        Args:
            rows: the key, the scalars of docs/format.md, and `tokens`, the labeled token ids.
        """
        repeated = [repetition(np.asarray(ids), NGRAM) for ids in rows["tokens"]]
        measured = rows.select(
            *KEY_COLUMNS,
            *("n_tokens", "n_labels", "mean_nll", "coverage"),
            pl.Series("repetition", repeated, pl.Float64),
            pl.col("tokens").list.head(SHOWN),
        ).filter(pl.col("n_labels") > 0)
        for name, (column, large) in BY.items():
            known = [self._kept[name]] if name in self._kept else []
            ordered = pl.concat([*known, measured]).sort(
                column, descending=large, nulls_last=True, maintain_order=True
            )
            self._kept[name] = ordered.head(WORST)

    def facts(self) -> dict[str, list[OutlierRow]]:
        """Return the rows of each kind as JSON values, the most extreme first."""
        return {
            name: [_finite(row) for row in kept.to_dicts()] for name, kept in self._kept.items()
        }


def _finite(row: dict[str, object]) -> OutlierRow:
    values = {n: rounded(v) if isinstance(v, float) else v for n, v in row.items()}
    return cast(OutlierRow, values)


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round a number for JSON, which has neither infinity nor NaN."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
