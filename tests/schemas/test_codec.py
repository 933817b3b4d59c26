from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import row_schema
from schemas.codec import Labels, bucketed_entropy, decode, encode, widen
from schemas.rounding_error import HALF_STEP
from tests.schemas.samples import random_labels


def as_table(rows: list[Labels], vocab: int) -> pa.Table:
    schema = row_schema(vocab)
    columns = encode(rows, vocab)
    return pa.table({name: array.cast(schema.field(name).type) for name, array in columns.items()})


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    vocab=st.sampled_from([3, 50, 65_536, 70_000]),
    k=st.integers(1, 9),
    ragged=st.booleans(),
    full=st.booleans(),
)
def test_round_trip(lengths: list[int], vocab: int, k: int, ragged: bool, full: bool) -> None:
    """Ids are exact and logprobs within half a float16 step, for any shape."""
    k, vocab = min(k, vocab), min(vocab, 300) if vocab < 65_536 else vocab
    vocab_size = vocab
    rows = [
        random_labels(n, k, min(vocab, 300), seed=i, ragged=ragged, full=full)
        for i, n in enumerate(lengths)
    ]
    decoded = decode(as_table(rows, vocab_size))
    assert decoded.offsets.tolist() == np.concatenate([[0], np.cumsum(lengths)]).tolist()
    for i, row in enumerate(rows):
        stored = decoded.labels[slice(decoded.offsets[i], decoded.offsets[i + 1])]
        width = stored.topk_ids.shape[1]
        np.testing.assert_array_equal(stored.topk_ids, row.topk_ids[:, :width])
        assert (row.topk_ids[:, width:] == -1).all()
        for name in ("topk_logprobs", "tail_logprob", "token_logprob"):
            ours, theirs = getattr(stored, name), getattr(row, name)
            theirs = theirs[:, :width] if theirs.ndim == 2 else theirs
            finite = np.isfinite(theirs)
            np.testing.assert_array_equal(np.isfinite(ours), finite)
            allowed = np.maximum(HALF_STEP * np.abs(theirs[finite]), 2.0**-25)
            assert (np.abs(ours[finite] - theirs[finite]) <= allowed).all()
        if full:
            assert stored.entropy is not None
            assert stored.log_normalizer is not None
            np.testing.assert_array_equal(stored.log_normalizer, row.log_normalizer)


def test_decode_honors_slices() -> None:
    rows = [random_labels(n, 4, 40, seed=n) for n in (3, 5, 2)]
    table = as_table(rows, 40)
    part = decode(table.slice(1, 1))
    assert part.offsets.tolist() == [0, 5]
    np.testing.assert_array_equal(part.labels.topk_ids, rows[1].topk_ids)


def test_decode_joins_chunks() -> None:
    rows = [random_labels(n, 4, 40, seed=n) for n in (3, 5)]
    joined = pa.concat_tables([as_table(rows[:1], 40), as_table(rows[1:], 40)])
    assert decode(joined).offsets.tolist() == [0, 3, 8]


def test_id_type_follows_the_vocabulary() -> None:
    small, large = (as_table([random_labels(2, 2, 9)], v) for v in (65_536, 65_537))
    assert small["topk_ids"].type.value_type.value_type == pa.uint16()
    assert large["topk_ids"].type.value_type.value_type == pa.int32()


def test_nan_is_refused() -> None:
    labels = random_labels(2, 3, 9)
    labels.tail_logprob[1] = np.nan
    with pytest.raises(ValueError, match="tail_logprob holds NaN"):
        encode([labels], 9)


def test_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        encode([random_labels(4, 9, 9)], 5)


def test_disagreeing_columns_are_refused() -> None:
    table = as_table([random_labels(3, 2, 9)], 9)
    short = as_table([random_labels(2, 2, 9)], 9)["tail_logprob"]
    broken = table.set_column(table.column_names.index("tail_logprob"), "tail_logprob", short)
    with pytest.raises(ValueError, match="number of positions"):
        decode(broken)


def test_bucketed_entropy_is_a_lower_bound_and_exact_where_all_is_stored() -> None:
    full = random_labels(20, 30, 30, full=True)
    assert full.entropy is not None
    np.testing.assert_allclose(bucketed_entropy(full), full.entropy, rtol=1e-5)
    part = random_labels(20, 5, 30, full=True)
    assert part.entropy is not None
    assert (bucketed_entropy(part) <= part.entropy + 1e-6).all()


def test_every_float16_is_widened_exactly() -> None:
    """All 65,536 values, including signed zeros, with and without infinities and NaN."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for some in (
        every,
        every[np.isfinite(every)],
        every[:0],
        every[np.isfinite(every)][::7].copy(),
    ):
        wide = widen(some)
        assert wide.dtype == np.float32
        expected = some.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(wide), np.isnan(expected))
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(
            wide[numbers].view(np.uint32), expected[numbers].view(np.uint32)
        )
