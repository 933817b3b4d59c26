"""A few kilobytes that state gigabytes cost no memory: each refused in a process of its own (11).

The process that opens the file reports the growth of its peak memory.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from schemas import open_label_set
from schemas.arrow import INDEX_SCHEMA
from schemas.compact import order_from_text, order_to_text
from schemas.parquet_sizes import read_parquet
from tests.hostile.peak_memory import peak_growth
from tests.hostile.sealed import (
    Json,
    findings,
    read_json,
    refoot,
    reidentify,
    reindex,
    reseal,
    rewrite_rows,
    trained_on,
    write_json,
)
from tests.schemas.sets import CODECS, varied_set

MEGABYTES = 256


@pytest.fixture(params=CODECS)
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    varied_set(tmp_path / "warm", request.param)
    return varied_set(tmp_path / "labels", request.param)


def cost(path: Path) -> int:
    """Read a set in every way in a process of its own; return by how many MB its peak grew."""
    kilobytes, seconds = peak_growth("set", path)
    assert float(seconds) < 30  # of processor time
    return int(kilobytes) // 1024


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def order_bomb(labels: Path) -> None:
    """4 GB of zeros where the order of ids should be."""
    frame = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 28))
    text = base64.b64encode(frame).decode()
    refoot(labels / "shards/part-000000.parquet", lambda facts: facts | {"topk_order": text})
    reseal(labels)


def order_with_stated_size(labels: Path) -> None:
    """A frame whose header alone states 1 TB."""
    frame = bytes.fromhex("28b52ffd") + bytes([0xE0]) + (1 << 40).to_bytes(8, "little") + b"\1\0\0"
    text = base64.b64encode(frame).decode()
    refoot(labels / "shards/part-000000.parquet", lambda facts: facts | {"topk_order": text})
    reseal(labels)


def huge_vocabulary(labels: Path) -> None:
    reidentify(labels, vocab_size=2**31 - 1)


def large_vocabulary(labels: Path) -> None:
    """Within the limit: the order of ids alone would take 16 MB per shard."""
    reidentify(labels, vocab_size=1 << 22)


def huge_k(labels: Path) -> None:
    reidentify(labels, k=1 << 22)


def many_units(labels: Path) -> None:
    reseal(labels, manifest=lambda m: m | {"planned_units": 10**12})


def many_units_of_a_running_set(labels: Path) -> None:
    changes = {"planned_units": 10**12, "status": "running"}
    reseal(labels, manifest=lambda m: m | changes)


def most_units_of_a_running_set(labels: Path) -> None:
    reseal(labels, manifest=lambda m: m | {"planned_units": 1 << 20, "status": "running"})


def index_bomb(labels: Path) -> None:
    """45 KB of index rows that are all equal."""
    page = labels / "index" / "page-000000.parquet"
    row = pq.read_table(page).slice(0, 1).to_pylist()[0] | {"sha256": "0" * 64}
    table = pa.Table.from_pylist([row], schema=INDEX_SCHEMA).take(pa.array(np.zeros(10**7, int)))
    pq.write_table(table, page, compression="zstd", row_group_size=10**7)
    content = read_json(labels / "manifest.json")
    from schemas.fingerprint import sha256_file

    content["index_pages"][0]["sha256"] = sha256_file(page)
    write_json(labels / "manifest.json", content)


def text_bomb(labels: Path) -> None:
    """One text of a megabyte per row, in a dictionary."""

    def change(table: pa.Table) -> pa.Table:
        table = table.take(pa.array(np.zeros(20_000, int)))
        text = pa.array(["x" * (1 << 20)]).take(pa.array(np.zeros(1, int)))
        values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), text)
        at = table.column_names.index("meta")
        return table.set_column(at, pa.field("meta", values.type), values)

    rewrite_rows(labels, change)


def rows_bomb(labels: Path) -> None:
    """Ten million equal rows."""
    rewrite_rows(labels, lambda table: table.slice(0, 1).take(pa.array(np.zeros(300_000, int))))


def lists_bomb(labels: Path) -> None:
    """One position with many ids, and many with one: a rectangle of both has 10^11 cells."""

    def change(table: pa.Table) -> pa.Table:
        for name in ("topk_k", "topk_ids"):
            if name in table.column_names:
                many = 300_000
                kind = table.schema.field(name).type
                row = [1] * many if name == "topk_k" else [[0]] * (many - 1) + [[0] * many]
                values = pa.array([row] * table.num_rows, kind)
                return table.set_column(
                    table.column_names.index(name), table.schema.field(name), values
                )
        return table

    rewrite_rows(labels, change)


def span_bomb(labels: Path) -> None:
    """A span of two billion positions."""

    def change(table: pa.Table) -> pa.Table:
        spans = [[{"start": 1, "stop": 2**31 - 1, "kind": "text"}]] * table.num_rows
        at, field = table.column_names.index("spans"), table.schema.field("spans")
        return table.set_column(at, field, pa.array(spans, field.type))

    rewrite_rows(labels, change)


def many_spans(labels: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        spans = [[{"start": 1, "stop": 2, "kind": "text"}] * 500_000] * table.num_rows
        at, field = table.column_names.index("spans"), table.schema.field("spans")
        return table.set_column(at, field, pa.array(spans, field.type))

    rewrite_rows(labels, change)


def page_states_more(labels: Path) -> None:
    """The header of the first page states two gigabytes, and the footer what it was."""
    shard = labels / "shards" / "part-000000.parquet"
    data = bytearray(shard.read_bytes())
    # A page begins with its type (15 00), then its size (15 and a varint).
    at = data.index(b"\x15\x00\x15", 4)
    end = at + 3
    while data[end] & 128:
        end += 1
    data[at + 3 : end + 1] = (b"\xfe\xff\xff\xff\x0f")[-(end + 1 - at - 3) :]
    shard.write_bytes(data)
    reseal(labels)


def footer_states_many_rows(labels: Path) -> None:
    def rows(facts: Json) -> Json:
        return facts

    shard = labels / "shards" / "part-000000.parquet"
    refoot(shard, rows)
    page = labels / "index" / "page-000000.parquet"
    table = pq.read_table(page)
    counts = pa.array([2**31 - 1] * table.num_rows, pa.int32())
    at = table.column_names.index("rows")
    pq.write_table(table.set_column(at, table.schema.field("rows"), counts), page)
    reseal(labels)


def deep_footer(labels: Path) -> None:
    nested: object = 0
    for _ in range(900):
        nested = [nested]
    shard = labels / "shards" / "part-000000.parquet"
    refoot(shard, lambda facts: facts | {"unit": nested})
    reseal(labels)


def deep_manifest(labels: Path) -> None:
    text = (labels / "manifest.json").read_text()
    deep = "[" * 100_000 + "]" * 100_000
    (labels / "manifest.json").write_text(
        text.replace('"provenance": {', f'"provenance": {{"x": {deep},')
    )
    assert deep in (labels / "manifest.json").read_text()


def long_number(labels: Path) -> None:
    content = read_json(labels / "manifest.json")
    content["provenance"]["x"] = 1
    text = json.dumps(content).replace('"x": 1', '"x": 1' + "0" * 50_000)
    (labels / "manifest.json").write_text(text)


BOMBS: tuple[Callable[[Path], None], ...] = (
    *(order_bomb, order_with_stated_size, huge_vocabulary, large_vocabulary, huge_k),
    *(many_units, many_units_of_a_running_set, most_units_of_a_running_set, index_bomb),
    *(text_bomb, rows_bomb, lists_bomb, span_bomb, many_spans, page_states_more),
    *(footer_states_many_rows, deep_footer, deep_manifest, long_number),
)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_is_refused_before_it_takes_memory(
    bomb: Callable[[Path], None], labels: Path
) -> None:
    bomb(labels)
    assert size(labels) < 1 << 20
    assert cost(labels) <= MEGABYTES
    if bomb not in (large_vocabulary, huge_k, most_units_of_a_running_set, deep_footer):
        assert findings(labels)
        is_order = bomb in (order_bomb, order_with_stated_size)
        if not is_order or open_label_set(labels).manifest.codec == CODECS[1]:
            assert trained_on(labels)


def test_the_order_of_ids_is_not_larger_than_the_vocabulary() -> None:
    order = np.arange(300, dtype=np.int32)
    assert order_from_text(order_to_text(order), 300).tolist() == order.tolist()
    with pytest.raises(ValueError, match="more than 299 ids"):
        order_from_text(order_to_text(order), 299)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26))
    with pytest.raises(ValueError, match="cannot be read"):
        order_from_text(base64.b64encode(unsized).decode(), 300)


def test_a_dictionary_of_long_texts_counts_for_every_value(tmp_path: Path) -> None:
    """What is read must fit, not what is stored: 512 KB of text, 2,000 times."""
    path = tmp_path / "some.parquet"
    for length, is_refused in ((1 << 19, True), (20, False)):
        texts = pa.array(["x" * length]).take(pa.array(np.zeros(2000, int)))
        pq.write_table(pa.table({"text": texts}), path, compression="zstd")
        if is_refused:
            with pytest.raises(ValueError, match="would take"):
                read_parquet(path)
        else:
            assert read_parquet(path).num_rows == 2000


def test_many_short_texts_of_a_dictionary_are_read(tmp_path: Path) -> None:
    """A dictionary of parents, one per row, is far smaller than its size times the rows."""
    path = tmp_path / "some.parquet"
    texts = [f"parent/{n}" for n in range(8000)]
    pq.write_table(pa.table({"parent_id": texts}), path, compression="zstd")
    assert read_parquet(path)["parent_id"].to_pylist() == texts


def test_larger_rows_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.parquet"
    texts = pa.array(["x" * (1 << 20)] * 100)
    pq.write_table(pa.table({"text": texts}), path, compression="zstd")
    with pytest.raises(ValueError, match="SOFTSHARDS_SIZE_LIMIT_MB raises the limit"):
        read_parquet(path)
    monkeypatch.setenv("SOFTSHARDS_SIZE_LIMIT_MB", "200")
    assert read_parquet(path).num_rows == 100


def test_a_shard_is_reindexed_by_the_tests(labels: Path) -> None:
    """The tools of these tests make sets that are good where nothing was changed."""
    reindex(labels)
    rewrite_rows(labels, lambda table: table)
    refoot(labels / "shards" / "part-000001.parquet", lambda facts: facts)
    reidentify(labels)
    assert trained_on(labels) is None
    assert all("mean_nll is" in found or "coverage is" in found for found in findings(labels))
