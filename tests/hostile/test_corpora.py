"""Corpora that crash, hang or fill the memory: a reject each, or one error with its place."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.packed_stream import PackedStream
from labeler.labeling.inputs.read_records import Record, Reject, read_records
from labeler.labeling.rendering.messages import read_list
from labeler.labeling.rendering.spans import BadRecord
from schemas import SoftshardsError
from schemas.size_limits import SIZE_LIMIT
from tests.hostile.peak_memory import peak_growth

GOOD = b'{"text": "good"}\n'
MB = 1 << 20


def read(path: Path) -> list[Record | Reject]:
    (file,) = find_inputs([str(path)])
    return list(read_records(file))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def good_and_reasons(path: Path) -> tuple[int, list[str]]:
    found = read(path)
    return sum(isinstance(r, Record) for r in found), [
        f"{r.id}: {r.reason}" for r in found if isinstance(r, Reject)
    ]


def refused(path: Path) -> str:
    with pytest.raises(SoftshardsError) as caught:
        read(path)
    assert str(caught.value.path).endswith(path.name)
    return caught.value.what


VALUES = {
    "digits": b"9" * 5000,
    "negative digits": b"-" + b"9" * 100_000,
    "key and digits": b'{"a": [1, ' + b"7" * 4301 + b"]}",
    "lists": b"[" * 101 + b"]" * 101,
    "objects": b'{"a":' * 150 + b"1" + b"}" * 150,
    "far lists": b"[" * 900 + b"]" * 900,
    "farther lists": b"[" * 100_000 + b"]" * 100_000,
    "unclosed": b"[" * 2_000_000,
    "many lists": b"[" + b"[]," * (MB + 1) + b"[]]",
    "half pair": b'"\\ud800"',
}
REASONS = {
    **dict.fromkeys(["digits", "negative digits", "key and digits"], "4300 digits"),
    **dict.fromkeys(["lists", "objects", "far lists"], "is nested more than 100 deep"),
    "half pair": "surrogates not allowed",
    **dict.fromkeys(["unclosed", "many lists"], "has more than 1,048,576 lists"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_break_parsers(tmp_path: Path, name: str) -> None:
    row = b'{"text": "x", "v": ' + VALUES[name] + b"}\n"
    reason = REASONS.get(name, "nested too deeply")
    good, [bad] = good_and_reasons(written(tmp_path / "a.jsonl", GOOD + row + GOOD))
    assert good == 2
    assert bad.startswith("a.jsonl:1: line 2 ")
    assert reason in bad
    array = written(tmp_path / "b.json", b"[" + GOOD + b"," + row + b"," + GOOD + b"]")
    if name in ("lists", "objects", "far lists", "half pair", "many lists"):
        assert good_and_reasons(array)[0] == 2
    else:
        what = refused(array)
        assert reason in what or "nested too deeply" in what
        assert "item 2" in what


def test_what_stays_within_the_limits_is_read(tmp_path: Path) -> None:
    values = [b"9" * 4300, b"[" * 95 + b"]" * 95, b'"' + b"[{" * MB + b'"', b"1" * 400 + b".5"]
    for value in values:
        data = b'{"text": "x", "v": ' + value + b"}\n"
        for name in ("a.jsonl", "b.json"):
            assert good_and_reasons(written(tmp_path / name, data * 2)) == (2, [])


def test_json_inside_of_records() -> None:
    for value in (
        VALUES["digits"],
        VALUES["far lists"],
        VALUES["farther lists"],
        b"{",
        b'"\\ud800"',
    ):
        with pytest.raises(BadRecord, match="column 'messages' is text, but not"):
            read_list({"messages": value.decode()}, "messages")


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.csv", "d.txt"])
def test_long_records(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_LIMIT, "4")
    long = b"x" * (MB + 9)
    contents = {
        "a.jsonl": GOOD + b'{"text": "' + long + b'"}\n' + GOOD,
        "b.json": b'[{"text": "' + long * 2 + b'"}]',
        "c.csv": b"text\ngood\n" + long + b"\n",
        "d.txt": long,
    }
    path = written(tmp_path / name, contents[name])
    if name in ("b.json", "c.csv"):
        assert "larger than 1 MB (SOFTSHARDS_SIZE_LIMIT_MB raises the limit)" in refused(path)
    else:
        good, [bad] = good_and_reasons(path)
        assert good == (2 if name == "a.jsonl" else 0)
        assert "larger than 1 MB" in bad
    monkeypatch.setenv(SIZE_LIMIT, "64")
    assert good_and_reasons(path)[1] == []


def test_a_csv_row_of_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_LIMIT, "4")
    for row in (b'"' + b"x\n" * MB, b'"a\nb",' * (MB // 4)):
        assert "larger than 1 MB" in refused(written(tmp_path / "a.csv", b"text\n" + row))


def test_null_bytes(tmp_path: Path) -> None:
    good, [bad] = good_and_reasons(written(tmp_path / "a.jsonl", GOOD + b'{"text": "\0"}\n' + GOOD))
    assert good == 2
    assert "is not JSON" in bad
    (row,) = read(written(tmp_path / "b.csv", b"text\na\0b\n"))
    assert isinstance(row, Record)
    assert row.columns == {"text": "a\0b"}
    assert "UTF-32" in refused(written(tmp_path / "c.jsonl", b"\0" * 1000))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 9),
    "zst": lambda data: zstandard.ZstdCompressor(level=3).compress(data),
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=1),
}
BOMBS = {
    "a.jsonl": lambda size: b'{"text": "' + b"x" * size + b'"}\n',
    "a.json": lambda size: b'[{"text": "' + b"x" * size + b'"}]',
    "a.csv": lambda size: b"text\n" + b"x" * size + b"\n",
    "a.txt": lambda size: b"x" * size,
}


def peak_kb(path: Path) -> tuple[int, int, str]:
    """Return the memory that reading takes, the records, and the error."""
    memory, count, *error = peak_growth("corpus", path)
    return int(memory), int(count), " ".join(error).strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "packing"),
    [(name, "zst") for name in BOMBS] + [("a.jsonl", name) for name in PACK if name != "zst"],
)
def test_bombs(tmp_path: Path, name: str, packing: str) -> None:
    path = tmp_path / f"{name}.{packing}"
    data = PACK[packing](BOMBS[name](300 * MB))
    path.write_bytes(data)
    memory, _, error = peak_kb(path)
    assert memory < 256 * 1024, f"{memory >> 10} MB from {len(data) >> 10} KB"
    assert name in ("a.jsonl", "a.txt") or "larger than 16 MB" in error


@pytest.mark.parametrize("packing", PACK)
def test_streams_expand_by_limits(packing: str) -> None:
    bomb = PACK[packing](bytes(300 * MB))
    stream = io.BufferedReader(PackedStream(io.BytesIO(bomb), packing))
    size = 0
    with pytest.raises(EOFError, match="expands more than 512-fold"):  # noqa: PT012
        while part := stream.read(MB):
            size += len(part)
    assert 100 * MB <= size < 300 * MB


def test_a_window_takes_no_more_than_the_file_gives(tmp_path: Path) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    line = GOOD.replace(b"good", Random(0).randbytes(MB // 16).hex().encode())
    data = b"".join(packed.compress(line) for _ in range(2500)) + packed.flush()
    memory, count, error = peak_kb(written(tmp_path / "a.jsonl.zst", data))
    assert "512-fold" in error
    assert count > 0
    assert memory < 256 * 1024


@pytest.mark.parametrize("packing", PACK)
def test_all_that_was_packed_comes_out(packing: str) -> None:
    random = Random(packing)
    for size in (0, 1, 4095, 65536, 3 * MB):
        data = random.randbytes(size // 2) + b"a" * (size - size // 2)
        packed = PACK[packing](data) + PACK[packing](data[:99])
        stream = io.BufferedReader(PackedStream(io.BytesIO(packed), packing), 1000)
        assert stream.read() == data + data[:99]


def arrow_bytes(batch: pa.RecordBatch, *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def packed_arrow(path: Path, columns: list[pa.Array], codec: str, *, stream: bool = False) -> Path:
    """Write record batches of one column, their buffers compressed."""
    options = pa.ipc.IpcWriteOptions(compression=codec, emit_dictionary_deltas=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), pa.schema([("text", columns[0].type)]), options=options) as writer:
        for column in columns:
            writer.write_batch(pa.RecordBatch.from_arrays([column], ["text"]))
    return path


def dictionary(*texts: str) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array(texts))


PACKABLE = {
    "numbers": pa.array([7] * 5000),
    "text": pa.array(["x" * 40_000]),
    "views": pa.array(["x" * 40_000], pa.string_view()),
    "dictionary": dictionary("x" * 40_000),
    "list": pa.array([["x" * 40_000]]),
}


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("stream", [False, True])
def test_sizes_that_compressed_buffers_state(
    tmp_path: Path, name: str, codec: str, *, stream: bool
) -> None:
    path = packed_arrow(tmp_path / "a.arrow", [PACKABLE[name]], codec, stream=stream)
    assert good_and_reasons(path)[0] == len(PACKABLE[name]) or name in ("numbers", "list")
    data = path.read_bytes()
    assert int64(40_000) in data
    for size, message in ((1 << 40, "would take"), (1 << 63, "negative size")):
        path.write_bytes(data.replace(int64(40_000), size.to_bytes(8, "little")))
        assert message in refused(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numbers", "dictionaries"])
def test_compressed_batches_that_expand(tmp_path: Path, name: str) -> None:
    """Of dictionaries each is within the limit, and all of them are kept."""
    if name == "numbers":
        columns = [pa.array(np.zeros(40_000_000, np.int64))]
    else:
        columns = [dictionary(*(str(n) * 30_000_000 for n in range(k))) for k in range(1, 10)]
    path = packed_arrow(tmp_path / "a.arrow", columns, "zstd")
    assert path.stat().st_size < 100_000
    memory, count, error = peak_kb(path)
    assert count == 0
    assert "would take" in error
    assert memory < 256 * 1024


def test_a_footer_that_names_other_batches(tmp_path: Path) -> None:
    """Batches are read in the order of the file: none hides where only the footer leads."""
    path = packed_arrow(tmp_path / "a.arrow", [pa.array(["a"]), pa.array(["b"])], "zstd")
    data = path.read_bytes()
    end = data.index(b"\xff\xff\xff\xff\0\0\0\0", 8)
    second = data.rindex(b"\xff\xff\xff\xff", 0, end)
    path.write_bytes(data[:second] + b"\xff\xff\xff\xff\0\0\0\0" + data[second + 8 :])
    assert "the footer names 2 record batches, the file has 1" in refused(path)


def int32(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def int64(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()


WORDS = ["x" * 1001, "y"]
TEXT = pa.array(WORDS)
LISTS = pa.ListArray.from_arrays([0, 1001, 1002], pa.array(range(1002)))
CODES = pa.DictionaryArray.from_arrays(pa.array([501, 502], pa.int32()), pa.array(range(600)))
DAMAGED = {
    "beyond": (TEXT, int32(0, 1001, 1002), int32(0, 2**30, 2**30)),
    "backwards": (TEXT, int32(0, 1001, 1002), int32(1002, 0, 1002)),
    "negative": (TEXT, int32(0, 1001, 1002), int32(0, -(2**20), 1002)),
    "large": (pa.array(WORDS, pa.large_string()), int64(0, 1001, 1002), int64(0, 2**50, 2**50)),
    "list": (LISTS, int32(0, 1001, 1002), int32(0, 2**28, 2**28)),
    "negative list": (LISTS, int32(0, 1001, 1002), int32(0, -5, 2)),
    "code": (CODES, int32(501, 502), int32(501, 2**30)),
    "negative code": (CODES, int32(501, 502), int32(-9, 502)),
    "struct": (pa.StructArray.from_arrays([TEXT], ["a"]), int32(0, 1001), int32(2**30, 2**30)),
    "view": (pa.array(WORDS, pa.string_view()), int32(1001) + b"xxxx", int32(2**30) + b"xxxx"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("stream", [False, True])
def test_offsets_outside_of_a_file(tmp_path: Path, name: str, *, stream: bool) -> None:
    """Without the check, several of these read outside their memory and end the process."""
    column, old, new = DAMAGED[name]
    batch = pa.RecordBatch.from_arrays([column, pa.array(["a", "b"])], ["v", "text"])
    data = arrow_bytes(batch, stream=stream)
    assert data.count(old) == 1
    what = refused(written(tmp_path / "a.arrow", data.replace(old, new)))
    assert "column 0 of record batch 0 (from row 0)" in what


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
    deep = pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1, 2, 3], bad)], ["a"])
    for column in (bad, deep):
        batch = pa.RecordBatch.from_arrays([column], ["text"])
        good, [reason] = good_and_reasons(written(tmp_path / "a.arrow", arrow_bytes(batch)))
        assert good == 2
        assert "utf-8" in reason
    batch = pa.RecordBatch.from_arrays([pa.array([b"\xff" * 1001, b"y"]).view(pa.string())], ["a"])
    data = arrow_bytes(batch).replace(int32(0, 1001, 1002), int32(0, 2**30, 2**30))
    assert "column 0" in refused(written(tmp_path / "a.arrow", data))


def test_rows_that_take_no_bytes(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.null(), 2**30, [None])], ["text"])
    assert "states 1,073,741,824 rows" in refused(written(tmp_path / "a.arrow", arrow_bytes(batch)))
    with pq.ParquetWriter(tmp_path / "b.parquet", pa.schema([("text", pa.null())])) as writer:
        writer.write_table(pa.table({"text": pa.nulls(200_000_000)}), row_group_size=200_000_000)
    assert "states 200,000,000 rows" in refused(tmp_path / "b.parquet")


def views_of(text: str) -> pa.Array:
    """Return 1,000 views of one text."""
    one = pa.array([text], pa.string_view())
    _, views, data = one.buffers()
    many = pa.py_buffer(views.to_pybytes()[:16] * 1000)
    return pa.Array.from_buffers(pa.string_view(), 1000, [None, many, data])


def test_references_that_expand(tmp_path: Path) -> None:
    text = "x" * MB
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array([text]))
    inside = pa.ListArray.from_arrays([0, 0, 1000], codes)
    struct = pa.StructArray.from_arrays([codes], ["a"])
    for number, column in enumerate((codes, views_of(text), struct)):
        batch = pa.RecordBatch.from_arrays([column], ["text"])
        path = written(tmp_path / f"{number}.arrow", arrow_bytes(batch))
        memory, count, error = peak_kb(path)
        assert (count, error) == (1000, "")
        assert memory < 256 * 1024
    batch = pa.RecordBatch.from_arrays([inside], ["text"])
    good, [reason] = good_and_reasons(written(tmp_path / "a.arrow", arrow_bytes(batch)))
    assert good == 1
    assert "larger than 16 MB" in reason


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_view(pa.int64()),
        pa.large_list_view(pa.int64()),
        pa.list_(pa.list_view(pa.int8())),
        pa.run_end_encoded(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.list_(pa.int8())),
    ],
    ids=str,
)
def test_types_that_expand_without_bound_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, pa.schema([("text", kind)])) as writer:
        if not pa.types.is_dictionary(kind):
            writer.write_batch(pa.RecordBatch.from_arrays([pa.nulls(1, kind)], ["text"]))
        else:
            value = pa.array([[1]], pa.list_(pa.int8()))
            code = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), value)
            writer.write_batch(pa.RecordBatch.from_arrays([code], ["text"]))
    assert "is not read" in refused(written(tmp_path / "a.arrow", sink.getvalue()))


def test_parquet_that_expands(tmp_path: Path) -> None:
    text = "x" * (3 * MB)
    zeros = pa.array(np.zeros(20_000, np.int32))
    many = pa.DictionaryArray.from_arrays(zeros, pa.array([text]))
    flat = pa.table({"text": many[:2000]})
    nested = pa.table({"text": pa.ListArray.from_arrays([0, 20_000], many)})
    pages = pa.table({"text": ["y" * (200 * MB)]})
    ones = pa.table(
        {"text": pa.ListArray.from_arrays([0, 40_000_000], pa.array(np.ones(40_000_000, np.int8)))}
    )
    for name, table in {"flat": flat, "nested": nested, "pages": pages, "ones": ones}.items():
        path = tmp_path / f"{name}.parquet"
        dictionary = {"dictionary_pagesize_limit": 1 << 30, "use_dictionary": name != "pages"}
        dictionary["store_schema"] = False
        pq.write_table(table, path, compression="zstd", **dictionary)
        memory, count, error = peak_kb(path)
        assert memory < 300 * 1024, name
        if name == "flat":
            assert (count, error) == (2000, "")
        else:
            assert f"column text{'' if name == 'pages' else '.list.element'}" in error


FOOTERS = """
import random, sys
from pathlib import Path
from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.read_records import read_records
from schemas import SoftshardsError
path = Path(sys.argv[1])
good, choose, refused = path.read_bytes(), random.Random(1), 0
start = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
for _ in range(1000):
    data = bytearray(good)
    for _ in range(choose.choice((1, 1, 2))):
        data[choose.randrange(start, len(data) - 8)] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
    (file,) = find_inputs([str(path)])
    try:
        list(read_records(file))
    except SoftshardsError:
        refused += 1
print(refused)
"""


def test_no_damaged_footer_ends_the_process(tmp_path: Path) -> None:
    """PyArrow's own accessor of a column's metadata does, at the 73rd of these."""
    chats = [[{"role": "user", "content": "x"}], []]
    pq.write_table(pa.table({"text": ["a", "b"], "messages": chats}), tmp_path / "a.parquet")
    command = [sys.executable, "-c", FOOTERS, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


def test_other_writers_are_read(tmp_path: Path) -> None:
    rows = [
        {"text": f"row {i}", "chat": [{"role": "user", "content": "x" * i}]} for i in range(700)
    ]
    table = pa.Table.from_pylist(rows)
    settings = [
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"compression": "gzip", "write_page_index": True, "row_group_size": 100},
        {"compression": "lz4", "data_page_size": 100, "write_page_checksum": True},
    ]
    for number, options in enumerate(settings):
        pq.write_table(table, tmp_path / f"{number}.parquet", **options)
        found = read(tmp_path / f"{number}.parquet")
        assert [r.columns for r in found if isinstance(r, Record)] == rows
