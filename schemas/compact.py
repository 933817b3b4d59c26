"""Codec `compact/1`: the top-k of each position in about 60 % of the bytes of `plain/1`.

Three things make it small. The ids of a position are stored as a set, in order of their frequency
in the shard's top-k lists, as gaps that mostly fit a byte. The order of likelihood is recovered by
sorting the values. Logprobs are rounded in steps that are fine where the probability is high and
coarse where it is low (`STEPS`).

A codec is a pair of functions on Arrow tables: `pack` replaces the plain columns with stored ones,
and `unpack` is its inverse after rounding. Every value that `unpack` returns is a float16, so
packing again changes nothing. Specification: docs/format.md.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from schemas.arrow import COMPACT_COLUMNS, TOPK_COLUMNS, id_type, row_schema
from schemas.arrow_alloc import as_arrow, as_numpy, converted, empty
from schemas.arrow_lists import list_offsets, one_array
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.tempered_tails import TEMPERED_TAILS
from schemas.version import COMPACT_1, PLAIN_1

STEPS = ((0.0, 1 / 64), (4.0, 1 / 32), (6.0, 1 / 16))
"""(from, step): a logprob -x with x >= `from` is rounded to a multiple of `step`, in nats."""

ESCAPE = 255
"""The byte of a value that does not fit a byte and stands in the column of large values."""

MINUS_INF = 0
"""The step count of a logprob of -inf; others count from 1."""

MIN_OCCURRENCES = 3
"""Ids that occur less often in a shard's lists get no place in its order: a place costs 2 bytes."""

BLOCK = 1024
"""Positions decoded at a time, so that intermediate results stay in the processor's cache."""

_FINE = np.concatenate([np.arange(a, b, step) for (a, step), (b, _) in pairwise(STEPS)])
"""-logprob at each code (the number of steps from 0) finer than the last, coarsest step."""
_COARSE_FROM, _COARSE_STEP = STEPS[-1]
_NEAR: NDArray[np.float16] = -np.concatenate(
    [_FINE, _COARSE_FROM + _COARSE_STEP * np.arange(1024)]
).astype(np.float16)
"""Logprobs of the smallest codes, looked up instead of computed."""
_LARGEST_CODE = len(_FINE) + int((65504 - _COARSE_FROM) / _COARSE_STEP)  # float16 ends there


def rounding(logprobs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the largest error of each stored logprob, in nats.

    It is half a step, plus half a step of the float16 that it was before. The most likely id of a
    position stays the most likely: where rounding would tie it with another id, it moves up by one
    more step, which is not included here.
    """
    x = -np.asarray(logprobs, dtype=np.float64)
    x = np.where(np.isfinite(x), x, 0.0)
    starts, steps = (np.array(part) for part in zip(*STEPS))
    return steps[np.searchsorted(starts, x * (1 + 2.0**-10), side="right") - 1] / 2 + x * 2.0**-11


def frequency_order(counts: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return the ids of a shard's top-k lists, the most frequent first, ties by id.

    Ids with fewer than `MIN_OCCURRENCES` are left out; they follow in numerical order.

    Args:
        counts: integers [up to vocab_size], the number of occurrences of each id.
    """
    order = np.argsort(-counts, kind="stable")
    return order[: int((counts >= MIN_OCCURRENCES).sum())].astype(np.int32)


def order_to_text(order: NDArray[np.int32]) -> str:
    """Encode a frequency order for a footer: base64 of zstd of split little-endian bytes."""
    split = order.astype("<i4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zstandard.ZstdCompressor(level=19).compress(split.tobytes())).decode()


def order_from_text(text: str, vocab_size: int) -> NDArray[np.int32]:
    """Decode `order_to_text`, and append the ids that have no place of their own.

    Returns:
        int32 [vocab_size]: the id at each place.

    Raises:
        ValueError: the text is not an order of ids below `vocab_size`.
    """
    try:
        frame = base64.b64decode(text, validate=True)
        # The frame states its size, which the library allocates whatever the limit.
        if zstandard.frame_content_size(frame) > 4 * vocab_size:
            raise ValueError(f"more than {vocab_size} ids")
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=4 * vocab_size)
    except (ValueError, zstandard.ZstdError) as error:
        raise ValueError(f"the footer's order of ids cannot be read: {error}") from error
    if len(raw) % 4:
        raise ValueError("the footer's order of ids is cut off")
    split = np.frombuffer(raw, np.uint8).reshape(4, -1).T
    order = np.ascontiguousarray(split).view("<i4")[:, 0].astype(np.int32)
    placed = np.zeros(vocab_size, bool)
    if len(order) and not 0 <= order.min() <= order.max() < vocab_size:
        raise ValueError("the footer's order of ids names an id outside the vocabulary")
    placed[order] = True
    if placed.sum() != len(order):
        raise ValueError("the footer's order of ids names an id twice")
    return np.concatenate([order, np.flatnonzero(~placed).astype(np.int32)])


def pack(table: pa.Table, order: NDArray[np.int32]) -> pa.Table:
    """Replace the top-k columns of plain rows with compact ones.

    Args:
        table: rows with `topk_ids` and `topk_logprobs`, no id twice in a list.
        order: int32 [vocab_size], the id at each place (`order_from_text`).

    Returns:
        All columns, in the order of `row_schema` for this codec; the other columns unchanged.

    Raises:
        ValueError: a logprob is above 0 or NaN, or an id is outside the vocabulary or occurs twice
            in a list.
    """
    ids_column, logprobs_column = (one_array(table[n]) for n in TOPK_COLUMNS)
    rows, lists = list_offsets(ids_column), list_offsets(ids_column.flatten())
    ids = as_numpy(ids_column.flatten().flatten())
    logprobs = as_numpy(logprobs_column.flatten().flatten())
    if logprobs.size and not (logprobs <= 0).all():
        raise ValueError("a logprob is above 0 or NaN")
    if ids.size and not 0 <= ids.min() <= ids.max() < len(order):
        raise ValueError(f"an id is outside the vocabulary of {len(order)}")
    lengths = np.diff(lists)
    places, codes, real = _squared(ids, logprobs, lengths, order)
    by_place = np.argsort(places, axis=1, kind="stable")
    places = np.take_along_axis(places, by_place, 1)
    gaps = np.diff(places, axis=1, prepend=-1) - 1
    if (gaps[real] < 0).any():
        raise ValueError("an id occurs twice in a list")
    finite = real & (codes <= _LARGEST_CODE)
    floor = np.where(finite, codes, 0).max(axis=1, initial=0)
    steps = np.where(finite, floor[:, None] - codes + 1, MINUS_INF)
    steps = np.take_along_axis(steps, by_place, 1)
    inner = np.concatenate([[0], np.cumsum(lengths)])[rows]  # ids up to each row
    gap_bytes, far = _escaped(gaps[real], inner)
    step_bytes, deep = _escaped(steps[real], inner)
    columns = {
        "topk_k": _lists(rows, lengths),
        "topk_gaps": gap_bytes,
        "topk_far": far,
        "topk_steps": step_bytes,
        "topk_deep": deep,
        "topk_floor": _lists(rows, floor),
    }
    return _replaced(table, TOPK_COLUMNS, columns, _schema_of(table, len(order), COMPACT_1))


def unpack(table: pa.Table, order: NDArray[np.int32]) -> pa.Table:
    """Replace the compact columns of stored rows with plain ones, most likely id first.

    Args:
        table: rows with all of the codec's columns.
        order: int32 [vocab_size], the id at each place (`order_from_text`).

    Raises:
        ValueError: the columns differ in the number of ids, or an id is outside the vocabulary.
    """
    k_column = one_array(table["topk_k"])
    rows = list_offsets(k_column)
    lengths = as_numpy(k_column.flatten()).astype(np.int64)
    floor = as_numpy(one_array(table["topk_floor"]).flatten())
    gaps = _unescaped(table, "topk_gaps", "topk_far", len(order))
    steps = _unescaped(table, "topk_steps", "topk_deep", 1 << 31)
    if lengths.min(initial=0) < 0 or not np.array_equal(
        rows, list_offsets(one_array(table["topk_floor"]))
    ):
        raise ValueError("the top-k columns differ in the number of positions")
    if not lengths.sum() == len(gaps) == len(steps):
        raise ValueError("the top-k columns differ in the number of ids")
    inner = np.concatenate([[0], np.cumsum(lengths)])
    stored_order = order.astype(id_type(len(order)).to_pandas_dtype())
    ids = empty(gaps.shape, stored_order.dtype.type)
    logprobs = empty(gaps.shape, np.float16)
    for first in range(0, len(lengths), BLOCK):
        block = slice(first, first + BLOCK)
        flat = slice(inner[first], inner[min(first + BLOCK, len(lengths))])
        codes, places = _decoded(gaps[flat], steps[flat], lengths[block], floor[block], len(order))
        ids[flat] = stored_order.take(places)
        logprobs[flat] = _values(codes)
    columns = {
        "topk_ids": _nested(rows, inner, as_arrow(ids)),
        "topk_logprobs": _nested(rows, inner, as_arrow(logprobs)),
    }
    return _replaced(table, COMPACT_COLUMNS, columns, _schema_of(table, len(order), PLAIN_1))


def _decoded(
    gaps: NDArray[np.int32],
    steps: NDArray[np.int32],
    lengths: NDArray[np.int64],
    floor: NDArray[np.int32],
    vocab_size: int,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
    """Return codes and places of a block of positions, each list sorted, without padding.

    Args:
        gaps: [ids of the block], each below `max(ESCAPE, vocab_size)`.
        steps: [ids of the block].
        lengths: ids per position.
        floor: the largest code per position.
        vocab_size: number of places.
    """
    k = int(lengths.max(initial=0))
    real = None if (lengths == k).all() else np.arange(k) < lengths[:, None]
    # Sums of k gaps fit 32 bits unless lists are long and the vocabulary is large.
    wide = np.int32 if (k + 1) * max(ESCAPE, vocab_size) < 1 << 31 else np.int64
    # Padding repeats the last place of its list.
    places = _square(gaps, real, len(lengths), fill=-1).cumsum(axis=1, dtype=wide)
    places += np.arange(k, dtype=wide)
    counts = _square(steps, real, len(lengths), fill=1)
    codes = (floor[:, None] + 1) - counts
    if steps.min(initial=1) == MINUS_INF:
        codes[counts == MINUS_INF] = _LARGEST_CODE + 1
    if places.max(initial=0) >= vocab_size or codes.min(initial=0) < 0:
        raise ValueError("an id is outside the vocabulary, or a logprob is above 0")
    return _sorted(codes, places, real, vocab_size)


def _sorted(
    codes: NDArray[np.int32],
    places: NDArray[np.signedinteger],
    real: NDArray[np.bool_] | None,
    vocab_size: int,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
    """Return (codes, places) of all lists, each sorted by likelihood, then place, without padding.

    Both are packed into one number, which sorts several times faster than an index.

    Args:
        codes: [n, k], at least 0.
        places: [n, k], at least 0; below `vocab_size` where they are no padding.
        real: [n, k], false at padding; None without padding.
        vocab_size: number of places.
    """
    bits = max(1, (vocab_size - 1).bit_length())
    small = int(codes.max(initial=0)).bit_length() + bits < 32
    kind: Any = np.uint32 if small else np.uint64
    key = codes.astype(kind)
    key <<= kind(bits)
    key |= places.astype(kind, copy=False)
    if real is not None:
        key[~real] = np.iinfo(kind).max  # padding sorts last
    key.sort(axis=1)
    key = key.ravel() if real is None else key[real]
    return key >> kind(bits), key & kind((1 << bits) - 1)


def _squared(
    ids: NDArray[np.integer],
    logprobs: NDArray[np.float16],
    lengths: NDArray[np.int64],
    order: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return places and codes [n, k], and a mask without padding; padding has the largest place."""
    place_of = np.empty(len(order), np.int64)
    place_of[order] = np.arange(len(order))
    k = int(lengths.max(initial=0))
    real = np.arange(k) < lengths[:, None]
    places = np.full(real.shape, np.iinfo(np.int64).max >> 1)
    codes = np.full(real.shape, _LARGEST_CODE + 1)
    places[real] = place_of[ids]
    codes[real] = _codes(logprobs)
    if k > 1:
        # `unpack` must sort the first id first; where it would not, the id moves up one step.
        first = codes[:, 0]
        tied = (codes[:, 1:] < first[:, None]) | (
            (codes[:, 1:] == first[:, None]) & (places[:, 1:] < places[:, :1])
        )
        lifted = tied.any(axis=1) & (first <= _LARGEST_CODE)
        codes[lifted, 0] = codes[lifted].min(axis=1) - 1
        if codes.min() < 0:
            raise ValueError("two ids of one list have a probability of 1")
    return places, codes, real


def _codes(logprobs: NDArray[np.float16]) -> NDArray[np.int64]:
    """Return the steps from 0 down to each logprob; `_LARGEST_CODE + 1` for -inf."""
    x = -logprobs.astype(np.float64)
    codes = np.full(x.shape, _LARGEST_CODE + 1)
    first = 0
    for (start, step), (stop, _) in pairwise([*STEPS, (np.inf, 0.0)]):
        inside = (x >= start) & (x < stop)
        codes[inside] = first + np.rint((x[inside] - start) / step).astype(np.int64)
        first += 0 if np.isinf(stop) else round((stop - start) / step)
    return codes


def _values(codes: NDArray[np.integer]) -> NDArray[np.float16]:
    """Return the logprobs of codes: the inverse of `_codes`."""
    if codes.size == 0 or codes.max() < len(_NEAR):
        return _NEAR.take(codes)
    near = _NEAR.take(np.minimum(codes, len(_NEAR) - 1))
    far = -(_COARSE_FROM + _COARSE_STEP * (codes.astype(np.float64) - len(_FINE)))
    far[codes > _LARGEST_CODE] = -np.inf
    values: NDArray[np.float64] = np.where(codes < len(_NEAR), near, far)
    return values.astype(np.float16)


def _escaped(values: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
    """Return values as bytes, one binary per row, and the large values, one list per row."""
    large = values >= ESCAPE
    data = np.where(large, ESCAPE, values).astype(np.uint8)
    offsets = pa.py_buffer(rows.astype(np.int64).tobytes())
    binaries = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(rows) - 1, [None, offsets, pa.py_buffer(data.tobytes())]
    ).cast(pa.binary())
    many = np.concatenate([[0], np.cumsum(large)])[rows]
    return binaries, _lists(many, values[large])


def _unescaped(table: pa.Table, name: str, large: str, limit: int) -> NDArray[np.int32]:
    """Return the values of a column, those in column `large` in [0, limit)."""
    column = one_array(table[name])
    start, stop = (column.offset, column.offset + len(column))
    offsets = np.frombuffer(column.buffers()[1], np.int32)[start : stop + 1]
    data = column.buffers()[2]
    bytes_ = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    bytes_ = bytes_[offsets[0] : offsets[-1]] if len(offsets) else bytes_[:0]
    values = converted(bytes_, np.int32)
    escaped = np.flatnonzero(bytes_ == ESCAPE)
    others = as_numpy(one_array(table[large]).flatten())
    if len(escaped) != len(others):
        raise ValueError(f"{name} and {large} differ in the number of large values")
    if not 0 <= others.min(initial=0) <= others.max(initial=0) < limit:
        raise ValueError(f"{large} has values outside [0, {limit})")
    values[escaped] = others
    return values


def _square(
    values: NDArray[np.int32], real: NDArray[np.bool_] | None, rows: int, *, fill: int
) -> NDArray[np.int32]:
    """Return flat values as [rows, k], with `fill` where the mask `real` is false."""
    if real is None:
        return values.reshape(rows, -1) if rows else values.reshape(0, 0)
    square = np.full(real.shape, fill, np.int32)
    square[real] = values
    return square


def _lists(offsets: NDArray[np.int64], values: NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(
        as_arrow(offsets.astype(np.int32)), as_arrow(values.astype(np.int32))
    )


def _nested(rows: NDArray[np.int64], inner: NDArray[np.int64], values: pa.Array) -> pa.Array:
    lists = pa.ListArray.from_arrays(as_arrow(inner.astype(np.int32)), values)
    return pa.ListArray.from_arrays(as_arrow(rows.astype(np.int32)), lists)


def _schema_of(table: pa.Table, vocab_size: int, codec: str) -> pa.Schema:
    """Return the schema of a table in another codec."""
    names = table.column_names
    tempered, weighted = (name in names for name in (TEMPERED_TAILS, LABEL_WEIGHTS))
    return row_schema(vocab_size, codec, tempered=tempered, weighted=weighted)


def _replaced(
    table: pa.Table, old: tuple[str, ...], new: dict[str, pa.Array], schema: pa.Schema
) -> pa.Table:
    """Return the table with columns `new` for `old`, in the order of `schema`, without metadata."""
    columns = {name: table[name] for name in table.column_names if name not in old} | new
    names = [name for name in schema.names if name in columns]
    return pa.table([columns[n] for n in names], schema=pa.schema([schema.field(n) for n in names]))
