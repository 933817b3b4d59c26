"""The rows of a label set that stand out, kept while its row groups go by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from labeler.labelsets.common.ngrams import repetition
from schemas.arrow import KEY_COLUMNS

WORST = 5
"""Rows kept of each kind."""
SHOWN = 24
"""Labeled tokens kept of a row, to be shown."""
NGRAM = 4

BY = {
    "highest NLL": ("mean_nll", True),
    "lowest coverage": ("coverage", False),
    "most repetition": ("repetition", True),
    "longest": ("n_tokens", True),
}
"""What makes a row stand out: the column, and whether large values do."""


@dataclass
class Outliers:
    """The `WORST` rows of each kind in `BY`, of all rows so far."""

    _kept: dict[str, pl.DataFrame] = field(default_factory=dict)

    def add(self, rows: pl.DataFrame) -> None:
        """Consider some rows.

        Args:
            rows: with the key, the scalars of docs/format.md, and `tokens`, the labeled token ids.
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

    def facts(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each kind as JSON values, the most outlying first."""
        return {
            name: [_finite(row) for row in kept.to_dicts()] for name, kept in self._kept.items()
        }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {n: rounded(v) if isinstance(v, float) else v for n, v in row.items()}


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A number for JSON, which knows no infinity."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How `labeler inspect --row` takes each row: its id, with chunk and sample where not 0."""
    return [
        row["id"] + "".join(f"/{part}={row[part]}" for part in KEY_COLUMNS[1:] if row[part])
        for row in rows
    ]
