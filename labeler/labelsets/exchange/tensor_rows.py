"""Rows of a label set as the rectangles of DistillKit and axolotl: one entry a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labelsets.exchange.exchange_formats import FILL
from schemas import PAD_ID, decode
from schemas.shift_check import label_places

ENTRIES = 1 << 21
"""Numbers of a column that are held at a time: a rectangle has them for unlabeled tokens, too."""
IGNORED = -100
"""Label of a token without a loss, as torch and transformers know it."""


@dataclass(frozen=True)
class Rectangles:
    """Entry t of a row is the distribution of its token t + 1.

    Attributes:
        tokens: int64 [m], the tokens of all rows; starts: int64 [rows + 1], where rows begin.
        ids: int64 [m, k]; 0 where there is nothing.
        logprobs: float32 [m, k]; FILL where there is nothing.
        real: bool [m, k], where there is something.
        labeled: bool [m], tokens that have a label (at the entry before).
    """

    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    real: NDArray[np.bool_]
    labeled: NDArray[np.bool_]

    def lists(self, values: NDArray[Any]) -> pa.Array:
        """Values of all entries [m] or [m, k] as one list a row."""
        if values.ndim == 1:
            inner = pa.array(values)
        else:
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            inner = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
        return pa.ListArray.from_arrays(pa.array(self.starts.astype(np.int32)), inner)


def distillkit_table(rows: Rectangles) -> pa.Table:
    """`input_ids`, `labels`, `token_ids`, `top_values`.

    DistillKit masks entry t by labels[t], without a shift: so a label stands there, and only
    there, where the entry holds a distribution.
    """
    present = rows.real.any(axis=1)
    return pa.table(
        {
            "input_ids": rows.lists(rows.tokens),
            "labels": rows.lists(np.where(present, rows.tokens, IGNORED)),
            "token_ids": rows.lists(rows.ids),
            "top_values": rows.lists(rows.logprobs),
        }
    )


def axolotl_table(rows: Rectangles) -> pa.Table:
    """`input_ids`, `attention_mask`, `labels` and the three columns of axolotl's KD collator.

    `labels` are those of any causal model: transformers shifts them. The targets are not shifted
    by anyone, so the mask of entry t goes with labels[t + 1].
    """
    return pa.table(
        {
            "input_ids": rows.lists(rows.tokens),
            "attention_mask": rows.lists(np.ones(len(rows.tokens), np.int8)),
            "labels": rows.lists(np.where(rows.labeled, rows.tokens, IGNORED)),
            "target_token_ids": rows.lists(rows.ids),
            "target_logprobs": rows.lists(rows.logprobs),
            "target_mask": rows.lists(rows.real.astype(np.int8)),
        }
    )


def rectangles(table: pa.Table, k: int) -> Iterator[Rectangles]:
    """Rows of a label set, plain columns, a bounded number at a time.

    Args:
        table: the rows.
        k: ids an entry.
    """
    ends = np.cumsum(table["n_tokens"].to_numpy().astype(np.int64) * k)
    start = 0
    while start < table.num_rows:
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + ENTRIES, side="right"))
        stop = max(start + 1, stop)
        yield _rectangles(table.slice(start, stop - start), k)
        start = stop


def _rectangles(table: pa.Table, k: int) -> Rectangles:
    decoded = decode(table)
    labels, places = decoded.labels, label_places(table, decoded)
    m, width = len(places.tokens), labels.topk_ids.shape[1]
    ids, real = np.zeros((m, k), np.int64), np.zeros((m, k), bool)
    logprobs = np.full((m, k), FILL, np.float32)
    at = places.starts[places.row] + places.position
    there = (labels.topk_ids != PAD_ID) & np.isfinite(labels.topk_logprobs)
    real[at - 1, :width] = there
    ids[at - 1, :width] = np.where(there, labels.topk_ids, 0)
    logprobs[at - 1, :width] = np.where(there, labels.topk_logprobs, FILL)
    labeled = np.zeros(m, bool)
    labeled[at] = True
    return Rectangles(
        tokens=places.tokens.astype(np.int64),
        starts=places.starts,
        ids=ids,
        logprobs=logprobs,
        real=real,
        labeled=labeled,
    )
