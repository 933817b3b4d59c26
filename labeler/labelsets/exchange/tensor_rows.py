"""Rows of a label set as the rectangles of DistillKit and axolotl: one entry per token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labelsets.common.decode_rows import decode_rows
from labeler.labelsets.exchange.exchange_formats import FILL, IGNORED
from schemas.codec import PAD_ID
from schemas.shift_check import label_places

ENTRIES = 1 << 21
"""Numbers of a column that are held at a time; a rectangle has them for unlabeled tokens, too."""


@dataclass(frozen=True)
class Rectangles:
    """Rows in which entry t holds the distribution of token t + 1.

    Attributes:
        tokens: int64 [m], the tokens of all rows.
        starts: int64 [rows + 1], index of each row's first token.
        ids: int64 [m, k]; 0 where empty.
        logprobs: float32 [m, k]; FILL where empty.
        real: bool [m, k], false where empty.
        labeled: bool [m], tokens that have a label, which is in the entry before.
    """

    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    real: NDArray[np.bool_]
    labeled: NDArray[np.bool_]

    def lists(self, values: NDArray[Any]) -> pa.Array:
        """Return values of all entries, [m] or [m, k], as one list per row."""
        if values.ndim == 1:
            inner = pa.array(values)
        else:
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            inner = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
        return pa.ListArray.from_arrays(pa.array(self.starts.astype(np.int32)), inner)


def distillkit_table(rows: Rectangles) -> pa.Table:
    """Return `input_ids`, `labels`, `token_ids` and `top_values`.

    DistillKit masks entry t by labels[t], without a shift, so labels[t] is set exactly where entry
    t holds a distribution.
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
    """Return `input_ids`, `attention_mask`, `labels` and the columns of axolotl's KD collator.

    transformers shifts `labels`, as for any causal model. Nothing shifts the targets, so the mask
    of entry t corresponds to labels[t + 1].
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
    """Yield the rows of a table with plain columns, `ENTRIES` numbers of a column at a time.

    Args:
        table: rows of a label set.
        k: ids per entry.
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
    decoded = decode_rows(table)
    labels, places = decoded.labels, label_places(table, decoded)
    m, width = len(places.tokens), labels.topk_ids.shape[1]
    ids, real = np.zeros((m, k), np.int64), np.zeros((m, k), bool)
    logprobs = np.full((m, k), FILL, np.float32)
    at = places.starts[places.row] + places.position
    stored = (labels.topk_ids != PAD_ID) & np.isfinite(labels.topk_logprobs)
    real[at - 1, :width] = stored
    ids[at - 1, :width] = np.where(stored, labels.topk_ids, 0)
    logprobs[at - 1, :width] = np.where(stored, labels.topk_logprobs, FILL)
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
