"""Codec `compact/1` against `plain/1`: equal ids, and values within the documented bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import Labels, decode, rounding, to_plain
from schemas.arrow import COMPACT_COLUMNS, row_schema, shard_writer
from schemas.codec import PAD_ID, encode
from schemas.compact import frequency_order, order_from_text, order_to_text, pack, unpack
from schemas.shard import write_shard
from tests.schemas.samples import identity, random_labels, shard_table


def plain_table(rows: list[Labels], vocab: int) -> pa.Table:
    schema = row_schema(vocab)
    columns = encode(rows, vocab)
    return pa.table({name: array.cast(schema.field(name).type) for name, array in columns.items()})


def order_of(table: pa.Table, vocab: int) -> np.ndarray:
    ids = table["topk_ids"].combine_chunks().flatten().flatten().to_numpy()
    return order_from_text(order_to_text(frequency_order(np.bincount(ids))), vocab)


@settings(max_examples=80)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=0, max_size=6),
    vocab=st.sampled_from([1, 3, 50, 300, 70_000]),
    k=st.integers(1, 400),
    ragged=st.booleans(),
    scale=st.sampled_from([0.0, 0.01, 1.0, 8.0, 3000.0]),
    seed=st.integers(0, 1000),
)
def test_round_trip(
    lengths: list[int], vocab: int, k: int, ragged: bool, scale: float, seed: int
) -> None:
    """Any k, vocabulary and shape; ties (scale 0), and logprobs that are -inf in float16."""
    drawn = min(vocab, 300)
    k = min(k, drawn)
    rows = [random_labels(n, k, drawn, seed=seed + i, ragged=ragged) for i, n in enumerate(lengths)]
    rows = [_scaled(row, scale) for row in rows]
    plain = plain_table(rows, vocab)
    order = order_of(plain, vocab)
    packed = pack(plain, order)
    again = unpack(packed, order)
    assert (again.schema.names, again.schema.types) == (plain.schema.names, plain.schema.types)
    assert pack(again, order).equals(packed), "packing what was unpacked changes nothing"
    before, after = decode(plain), decode(again)
    np.testing.assert_array_equal(before.offsets, after.offsets)
    old, new = before.labels, after.labels
    if not len(old):
        return
    assert (new.topk_logprobs[:, 1:] <= new.topk_logprobs[:, :-1]).all()  # padding is -inf
    np.testing.assert_array_equal(np.sort(old.topk_ids, axis=1), np.sort(new.topk_ids, axis=1))
    has_mass = np.isfinite(old.topk_logprobs[:, :1]).all(axis=1)
    np.testing.assert_array_equal(new.topk_ids[has_mass, 0], old.topk_ids[has_mass, 0])
    by_old, by_new = (np.argsort(labels.topk_ids, axis=1) for labels in (old, new))
    values = np.take_along_axis(old.topk_logprobs, by_old, 1).astype(np.float64)
    stored = np.take_along_axis(new.topk_logprobs, by_new, 1).astype(np.float64)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(stored), finite)
    first = np.take_along_axis(np.arange(values.shape[1])[None] == 0, by_old, 1)
    allowed = rounding(values, "compact/1") * (1 + 2 * first)  # the argmax may move one more step
    assert (np.abs(stored - np.where(finite, values, 0))[finite] <= allowed[finite]).all()


def _scaled(labels: Labels, scale: float) -> Labels:
    """Return the labels of softmax(scale * logits): the same top-k, without a true tail."""
    real = labels.topk_ids != PAD_ID
    below_first = np.where(real, labels.topk_logprobs - labels.topk_logprobs[:, :1], 0.0) * scale
    z = np.where(real, below_first, -np.inf).astype(np.float64)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True)) + 1e-3
    return Labels(
        topk_ids=labels.topk_ids,
        topk_logprobs=np.where(z < -60_000, -np.inf, z).astype(np.float32),
        tail_logprob=labels.tail_logprob,
        token_logprob=labels.token_logprob,
    )


def test_the_argmax_survives_ties() -> None:
    """The most likely id stays first where rounding makes two values equal."""
    logprobs = np.log([[0.400, 0.399, 0.1], [0.400, 0.399, 0.1]]).astype(np.float32)
    labels = Labels(
        topk_ids=np.array([[7, 2, 1], [2, 7, 1]], np.int32),
        topk_logprobs=logprobs,
        tail_logprob=np.full(2, -2.3, np.float32),
        token_logprob=np.full(2, -1.0, np.float32),
    )
    plain = plain_table([labels], 10)
    again = decode(unpack(pack(plain, order_of(plain, 10)), order_of(plain, 10))).labels
    assert again.topk_ids[:, 0].tolist() == [7, 2]


def test_every_column_beside_the_top_k_stays() -> None:
    table = shard_table([4, 1, 7], full=True)
    order = order_of(table, 100)
    packed = pack(table, order)
    assert packed.schema == row_schema(100, "compact/1")
    again = unpack(packed, order)
    for name in set(table.column_names) - {"topk_ids", "topk_logprobs"}:
        assert again[name].equals(table[name]), name


def test_a_raw_shard_becomes_plain_by_its_own_footer(tmp_path: Path) -> None:
    table = shard_table([5, 3], vocab=100)
    ids = table["topk_ids"].combine_chunks().flatten().flatten().to_numpy()
    write_shard(
        tmp_path / "part.parquet",
        [table],
        identity=identity(vocab_size=100, k=8),
        unit=0,
        tail_source="exact",
        entropy_source="none",
        order=frequency_order(np.bincount(ids)),
    )
    raw = pq.read_table(tmp_path / "part.parquet")
    assert set(COMPACT_COLUMNS) <= set(raw.column_names)
    assert decode(to_plain(raw)).labels.topk_ids.shape == (6, 8)
    with pytest.raises(ValueError, match="no identity"):
        to_plain(raw.replace_schema_metadata(None))


def test_invalid_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        order_from_text(order_to_text(np.array([3, 3], np.int32)), 10)
    with pytest.raises(ValueError, match="outside"):
        order_from_text(order_to_text(np.array([12], np.int32)), 10)
    with pytest.raises(ValueError, match="cannot be read"):
        order_from_text("AAAA", 10)


@pytest.mark.parametrize("column", COMPACT_COLUMNS)
def test_columns_that_disagree_are_refused(column: str) -> None:
    """A faulty writer's shard: each column in turn disagrees with the others."""
    vocab, k = (60, 55) if column == "topk_deep" else (5000, 40)
    table, other = shard_table([6, 6], vocab=vocab, k=k), shard_table([6, 5], vocab=vocab, k=k - 1)
    order = order_of(table, vocab)
    packed = pack(table, order)
    assert len(
        packed[column].combine_chunks().flatten() if "list" in str(packed[column].type) else [1]
    )
    at = packed.column_names.index(column)
    broken = packed.set_column(at, packed.schema.field(column), pack(other, order)[column])
    with pytest.raises(ValueError, match=r"differ|outside|above 0"):
        unpack(broken, order)


def test_logprobs_above_zero_are_refused() -> None:
    labels = random_labels(2, 3, 9)
    labels.topk_logprobs[0, 0] = 0.5
    plain = plain_table([labels], 9)
    with pytest.raises(ValueError, match="above 0"):
        pack(plain, order_of(plain, 9))


def test_shard_writer_splits_bytes_of_the_large_values(tmp_path: Path) -> None:
    with shard_writer(tmp_path / "x.parquet", row_schema(100, "compact/1")) as writer:
        table = shard_table([9], vocab=100)
        writer.write_table(pack(table, order_of(table, 100)))
    group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["topk_floor.list.element"].encodings
    assert columns["topk_gaps"].compression == "ZSTD"
