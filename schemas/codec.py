"""Codec `plain/1`: label arrays to Arrow columns and back. Vectorized, no per-token Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, DTypeLike, NDArray

from schemas.arrow import id_type
from schemas.arrow_alloc import Scalar, as_arrow, as_numpy, converted
from schemas.arrow_lists import list_offsets, one_array
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.state_codec import decode_stored, label_offsets, stored_layers
from schemas.tempered_tails import TEMPERED_TAILS

PAD_ID = -1
"""Fills `topk_ids` past the end of shorter lists; its logprob is -inf."""

LABEL_COLUMNS = ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob")
OPTIONAL_LABEL_COLUMNS = ("entropy", "log_normalizer")
DRAW_COLUMNS = ("sample_ids", "sample_counts")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The teacher's labels at n positions, in span order; natural logarithms, temperature 1.

    Attributes:
        topk_ids: int32 [n, k], most likely first; PAD_ID past the end of a shorter list.
        topk_logprobs: float32 [n, k], log p over the full vocabulary; -inf at PAD_ID.
        tail_logprob: float32 [n], log of the mass outside `topk_ids`.
        token_logprob: float32 [n], log p of the actual token, in the top-k or not.
        entropy: float32 [n] in nats, of the full distribution, or None.
        log_normalizer: float32 [n], so that logits = logprobs + log_normalizer, or None.
        sample_ids: int32 [n, m], the ids drawn from the full distribution, in ascending order,
            PAD_ID past the end of a shorter list; or None.
        sample_counts: int32 [n, m], the count of each drawn id, 0 at PAD_ID; or None.
        tempered_tails: float32 [n, temperatures], the tail at further temperatures, over the same
            ids; or None.
        label_weights: float32 [n], 1 / the probability that a label was kept, of sets whose labels
            were sampled (`--keep-positions`); or None.
        states: [n, layers, d], hidden states, or None. From an engine, float32. From `decode`, what
            is stored: float16, or codes in the bases of the set (`schemas.state_codec`).
    """

    topk_ids: NDArray[np.int32]
    topk_logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]
    token_logprob: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None
    log_normalizer: NDArray[np.float32] | None = None
    sample_ids: NDArray[np.int32] | None = None
    sample_counts: NDArray[np.int32] | None = None
    tempered_tails: NDArray[np.float32] | None = None
    label_weights: NDArray[np.float32] | None = None
    states: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.tail_logprob)

    def __getitem__(self, rows: slice | NDArray[np.integer | np.bool_]) -> Labels:
        """Return the labels at some positions; arrays are views where NumPy makes views."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {n: None if a is None else a[rows] for n, a in arrays.items()}
        return Labels(**taken)


@dataclass(frozen=True, kw_only=True)
class DecodedLabels:
    """Labels of several rows, concatenated; row i has labels[offsets[i]:offsets[i + 1]]."""

    labels: Labels
    offsets: NDArray[np.int64]


def bucketed_entropy(labels: Labels) -> NDArray[np.float32]:
    """Return the entropy of the k + 1 outcomes (top-k, tail), in nats [n].

    It is a lower bound of the entropy of the full distribution.
    """
    logs = np.concatenate([labels.topk_logprobs, labels.tail_logprob[:, None]], axis=1)
    logs = np.maximum(logs.astype(np.float64), -1e4)  # 0 log 0 = 0, and exp(-1e4) is 0
    terms = np.exp(logs) * logs
    return np.asarray(-terms.sum(axis=1), dtype=np.float32)


def encode(rows: Sequence[Labels], vocab_size: int) -> dict[str, pa.Array]:
    """Encode the labels of rows as the label columns of a shard, one Arrow list per row.

    Hidden states are not among them: `schemas.hidden_part` writes them.

    Args:
        rows: the labels of each row; k may differ between rows and (by PAD_ID) within them.
        vocab_size: number of real token ids, which fixes the id type.

    Returns:
        Arrow arrays by column name; optional columns are null in rows without them.

    Raises:
        ValueError: a logprob is NaN, an id is outside the vocabulary, or a count outside 16 bits.
    """
    offsets = _offsets([len(labels) for labels in rows])
    real = [labels.topk_ids != PAD_ID for labels in rows]
    inner = _offsets(np.concatenate([keep.sum(axis=1) for keep in real] or [[]]))
    ids = _joined([_flattened(labels.topk_ids, r) for labels, r in zip(rows, real)], np.int32)
    id_values = _ids(ids, vocab_size)
    topk = _joined(
        [_flattened(labels.topk_logprobs, r) for labels, r in zip(rows, real)], np.float16
    )
    tail = _joined([labels.tail_logprob for labels in rows], np.float16)
    token = _joined([labels.token_logprob for labels in rows], np.float16)
    for name, values in (("topk_logprobs", topk), ("tail_logprob", tail), ("token_logprob", token)):
        if np.isnan(values).any():
            raise ValueError(f"{name} holds NaN")
    return {
        "topk_ids": _lists(offsets, _lists(inner, id_values)),
        "topk_logprobs": _lists(offsets, _lists(inner, as_arrow(topk))),
        "tail_logprob": _lists(offsets, as_arrow(tail)),
        "token_logprob": _lists(offsets, as_arrow(token)),
        "entropy": _nullable([labels.entropy for labels in rows], np.float16),
        "log_normalizer": _nullable([labels.log_normalizer for labels in rows], np.float32),
        **_encoded_draws(rows, vocab_size),
        **_encoded_tails(rows, offsets),
        **_encoded_weights(rows, offsets),
    }


def decode(table: pa.Table) -> DecodedLabels:
    """Decode the label columns of shard rows; the exact inverse of `encode` after rounding.

    Optional columns are decoded where the table has them and no row lacks them; hidden states, of
    the layers that the table has columns of, in their order.

    Raises:
        KeyError: a label column is missing from the table.
        ValueError: the label columns disagree about how many positions a row has.
    """
    outer, inner, ids = _nested(table, "topk_ids")
    outer_2, inner_2, topk = _nested(table, "topk_logprobs")
    if not (np.array_equal(outer, outer_2) and np.array_equal(inner, inner_2)):
        raise ValueError("topk_ids and topk_logprobs differ in shape")
    sample_ids, sample_counts = _decoded_draws(table, outer)
    lengths = np.diff(inner)
    labels = Labels(
        topk_ids=_padded(converted(ids, np.int32), lengths, PAD_ID),
        topk_logprobs=_padded(widen(topk), lengths, -np.inf),
        tail_logprob=_flat(table, "tail_logprob", outer),
        token_logprob=_flat(table, "token_logprob", outer),
        entropy=_flat(table, "entropy", outer) if _is_full(table, "entropy") else None,
        log_normalizer=(
            _flat(table, "log_normalizer", outer) if _is_full(table, "log_normalizer") else None
        ),
        sample_ids=sample_ids,
        sample_counts=sample_counts,
        tempered_tails=_decoded_tails(table, outer),
        label_weights=(
            _flat(table, LABEL_WEIGHTS, outer) if LABEL_WEIGHTS in table.column_names else None
        ),
        states=_stored_states(table, outer),
    )
    return DecodedLabels(labels=labels, offsets=outer)


def widen(half: NDArray[np.float16]) -> NDArray[np.float32]:
    """Convert float16 [...] to float32 exactly, ten times faster than NumPy.

    The exponent of a float16 is moved to where a float32 has it. A product then corrects the
    bias, which also normalizes subnormal numbers.
    """
    signed = half.view(np.int16)
    if signed.max(initial=0) >= 0x7C00 or half.view(np.uint16).max(initial=0) >= 0xFC00:
        return half.astype(np.float32)  # infinities and NaN have no such exponent
    bits = converted(signed, np.int32)  # the sign fills the upper half:
    bits <<= 13
    bits &= -0x70000001  # keep one bit of it
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)
    return values


def _padded(values: NDArray[Scalar], lengths: NDArray[np.int64], fill: float) -> NDArray[Scalar]:
    """Return flat values as a rectangle [lists, longest], padded with `fill`."""
    longest = int(lengths.max(initial=0))
    if longest * len(lengths) == len(values):
        return values.reshape(len(lengths), longest)
    square = np.full((len(lengths), longest), fill, values.dtype)
    square[np.arange(longest) < lengths[:, None]] = values
    return square


def _encoded_draws(rows: Sequence[Labels], vocab_size: int) -> dict[str, pa.Array]:
    """Return the columns of `DRAW_COLUMNS`."""
    drawn = [
        (row.sample_ids, row.sample_counts)
        for row in rows
        if row.sample_ids is not None and row.sample_counts is not None
    ]
    real = [ids != PAD_ID for ids, _ in drawn]
    ids = _joined([_flattened(ids, keep) for (ids, _), keep in zip(drawn, real)], np.int32)
    counts = _joined([_flattened(counts, keep) for (_, counts), keep in zip(drawn, real)], np.int32)
    if counts.size and not 1 <= counts.min() <= counts.max() < 1 << 16:
        raise ValueError(f"a count outside [1, 65536): {counts.min()} .. {counts.max()}")
    outer = as_arrow(_offsets([len(row) if row.sample_ids is not None else 0 for row in rows]))
    inner = _offsets(np.concatenate([keep.sum(axis=1) for keep in real] or [[]]))
    none = pa.array(np.array([row.sample_ids is None for row in rows], bool))
    return {
        name: pa.ListArray.from_arrays(outer, _lists(inner, values), mask=none)
        for name, values in (
            ("sample_ids", _ids(ids, vocab_size)),
            ("sample_counts", as_arrow(counts.astype(np.uint16))),
        )
    }


def _decoded_draws(
    table: pa.Table, expected: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | tuple[None, None]:
    """Decode `DRAW_COLUMNS`; (None, None) where a row has none."""
    if not all(_is_full(table, name) for name in DRAW_COLUMNS):
        return None, None
    outer, inner, ids = _nested(table, "sample_ids")
    outer_2, inner_2, counts = _nested(table, "sample_counts")
    if not (np.array_equal(outer, outer_2) and np.array_equal(inner, inner_2)):
        raise ValueError("sample_ids and sample_counts differ in shape")
    if not np.array_equal(outer, expected):
        raise ValueError("topk_ids and sample_ids differ in the number of positions")
    lengths = np.diff(inner)
    return (
        _padded(converted(ids, np.int32), lengths, PAD_ID),
        _padded(converted(counts, np.int32), lengths, 0),
    )


def _encoded_tails(rows: Sequence[Labels], offsets: NDArray[np.int32]) -> dict[str, pa.ListArray]:
    """Return the column `TEMPERED_TAILS`, if a row has such tails; other rows' are empty."""
    tails = [row.tempered_tails for row in rows]
    if all(each is None for each in tails):
        return {}
    widths = [np.full(len(r), 0 if t is None else t.shape[1]) for r, t in zip(rows, tails)]
    inner = _offsets(np.concatenate([*widths, np.empty(0, np.int64)]))
    values = _joined([t.ravel() for t in tails if t is not None], np.float16)
    if np.isnan(values).any():
        raise ValueError(f"{TEMPERED_TAILS} holds NaN")
    return {TEMPERED_TAILS: _lists(offsets, _lists(inner, as_arrow(values)))}


def _decoded_tails(table: pa.Table, expected: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Decode the column `TEMPERED_TAILS`; None where the table has none."""
    if TEMPERED_TAILS not in table.column_names or not table.num_rows:
        return None
    outer, inner, values = _nested(table, TEMPERED_TAILS)
    lengths = np.diff(inner)
    if not np.array_equal(outer, expected) or (lengths != lengths[:1]).any():
        raise ValueError(f"topk_ids and {TEMPERED_TAILS} differ in the number of positions")
    return widen(values).reshape(len(lengths), -1) if len(values) else None


def _encoded_weights(rows: Sequence[Labels], offsets: NDArray[np.int32]) -> dict[str, pa.Array]:
    """Return the column `LABEL_WEIGHTS`, if a row has such weights; others' are 1."""
    if all(row.label_weights is None for row in rows):
        return {}
    weights = [
        np.ones(len(row), np.float32) if row.label_weights is None else row.label_weights
        for row in rows
    ]
    return {LABEL_WEIGHTS: _lists(offsets, as_arrow(_joined(weights, np.float16)))}


def _stored_states(table: pa.Table, expected: NDArray[np.int64]) -> NDArray[Any] | None:
    """Decode hidden states; None where the table has none."""
    layers = stored_layers(table)
    if not layers:
        return None
    if any(not np.array_equal(label_offsets(table, layer), expected) for layer in layers):
        raise ValueError("topk_ids and hidden states differ in the number of positions")
    return decode_stored(table, layers)


def _is_full(table: pa.Table, name: str) -> bool:
    """Check that a table has a column and no row lacks it."""
    return name in table.column_names and table[name].null_count == 0


def _ids(ids: NDArray[np.int32], vocab_size: int) -> pa.Array:
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"token id outside [0, {vocab_size}): {ids.min()} .. {ids.max()}")
    return as_arrow(ids.astype(id_type(vocab_size).to_pandas_dtype()))


def _offsets(lengths: ArrayLike) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int32)


def _flattened(values: NDArray[Scalar], real: NDArray[np.bool_]) -> NDArray[Scalar]:
    """Return the real values of [n, k]; checking for padding is cheaper than picking by a mask."""
    return values.ravel() if real.all() else values[real]


def _joined(parts: Sequence[NDArray[np.generic]], dtype: type[Scalar]) -> NDArray[Scalar]:
    joined: NDArray[Scalar] = np.concatenate([*parts, np.empty(0, dtype)]).astype(dtype, copy=False)
    return joined


def _lists(offsets: NDArray[np.int32], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(as_arrow(offsets), values)


def _nullable(rows: Sequence[NDArray[np.float32] | None], dtype: DTypeLike) -> pa.Array:
    mask = np.array([row is None for row in rows], dtype=bool)
    offsets = _offsets([0 if row is None else len(row) for row in rows])
    values = np.concatenate([*(r for r in rows if r is not None), np.empty(0, dtype)])
    if np.isnan(values).any():
        raise ValueError("an optional label column holds NaN")
    return pa.ListArray.from_arrays(
        as_arrow(offsets), as_arrow(values.astype(dtype)), mask=pa.array(mask)
    )


def _column(table: pa.Table, name: str) -> pa.ListArray:
    column = one_array(table[name])
    if column.null_count:
        raise ValueError(f"column {name} has nulls")
    return column


def _nested(
    table: pa.Table, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    outer = _column(table, name)
    inner = outer.flatten()
    return list_offsets(outer), list_offsets(inner), as_numpy(inner.flatten())


def _flat(table: pa.Table, name: str, expected: NDArray[np.int64]) -> NDArray[np.float32]:
    column = _column(table, name)
    if not np.array_equal(list_offsets(column), expected):
        raise ValueError(f"topk_ids and {name} differ in the number of positions")
    values = as_numpy(column.flatten())
    return widen(values) if values.dtype == np.float16 else np.asarray(values, np.float32)
