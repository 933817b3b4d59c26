"""Facts about all rows that the rules need, from one pass; label columns are not read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labeler.console import progress
from labeler.labelsets.common.rows import Rows
from labeler.labelsets.curate.contamination import HeldOut, Overlaps, row_units
from labeler.labelsets.curate.curate_config import CurateConfig
from labeler.labelsets.curate.duplicates import (
    PERMUTATIONS,
    digest,
    signature,
    token_columns,
    tokens,
)
from schemas.arrow import KEY_COLUMNS
from schemas.ngrams import ngrams

NUMBERS = ("n_tokens", "n_labels", "mean_nll", "mean_entropy", "coverage")


@dataclass(frozen=True)
class RowFacts:
    """Facts about all rows: some hundred bytes per row, and 512 more with `--dedup near`.

    Attributes:
        rows: id, chunk, sample and the scalars, one line per row.
        digests: digests of the tokens that `--dedup exact` compares; empty without it.
        signatures: uint32 [rows, 128]; [0, 128] without `--dedup near`.
        overlaps: overlaps with held-out text; None without `--decontaminate`.
    """

    rows: pl.DataFrame
    digests: list[bytes]
    signatures: NDArray[np.uint32]
    overlaps: Overlaps | None

    @property
    def n_labels(self) -> NDArray[np.int64]:
        """Labels of each row, int64 [rows]."""
        return self.rows["n_labels"].to_numpy().astype(np.int64)

    @property
    def n_tokens(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 [rows]."""
        return self.rows["n_tokens"].to_numpy().astype(np.int64)

    def name(self, row: int) -> str:
        """Return a row's id/chunk/sample."""
        return "/".join(map(str, self.rows.select(KEY_COLUMNS).row(row)))


def gather_facts(rows: Rows, settings: CurateConfig, held_out: HeldOut | None) -> RowFacts:
    """Read the facts that the settings need.

    Raises:
        LabelSetError: a shard is altered.
    """
    scalars = [*KEY_COLUMNS, *NUMBERS]
    if settings.score and "repetition" in settings.score:
        scalars.append("repetition")
    columns = list(scalars)
    if settings.dedup != "none":
        columns += token_columns(settings.dedup_on)
    if held_out is not None:
        columns.append("text" if settings.ngram_of == "words" else "input_ids")
    columns = list(dict.fromkeys(columns))
    total = rows.labels.rows
    thinned = rows.labels.manifest.identity.keep_positions is not None
    compared = partial(tokens, on=settings.dedup_on, thinned=thinned)
    signatures = np.zeros((total if settings.dedup == "near" else 0, PERMUTATIONS), np.uint32)
    overlaps = None if held_out is None else Overlaps(held_out)
    frames: list[pl.DataFrame] = []
    digests: list[bytes] = []
    with progress("rows") as bar:
        task = bar.add_task("reading", total=total)
        for first, frame in rows.frames(columns):
            frames.append(frame.select(scalars))
            if settings.dedup == "exact":
                digests += [digest(ids) for ids in compared(frame)]
            if settings.dedup == "near":
                for i, ids in enumerate(compared(frame)):
                    signatures[first + i] = signature(ids, settings.shingle)
            if overlaps is not None:
                for name, units in zip(frame["id"], row_units(frame, settings.ngram_of)):
                    overlaps.add(name, ngrams(units, settings.ngram))
            bar.advance(task, frame.height)
    return RowFacts(pl.concat(frames), digests, signatures, overlaps)
