"""Every format: its records, bad records, bad files, and memory use."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.read_records import Record, Reject, read_records
from schemas import SoftshardsError

ROWS = [{"text": "one"}, {"text": 'two, "2"\nlines'}, {"text": "drei ü"}]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def read(path: Path) -> list[Record | Reject]:
    (file,) = find_inputs([str(path)])
    return list(read_records(file))


def columns(path: Path) -> list[dict[str, Any]]:
    return [item.columns for item in read(path) if isinstance(item, Record)]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def arrow(rows: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


FORMS = {
    "a.jsonl": json_lines(ROWS),
    "a.jsonl.gz": gzip.compress(json_lines(ROWS)),
    "a.jsonl.zst": zstd(json_lines(ROWS)),
    "a.json": json.dumps(ROWS).encode(),
    "bom.json": b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode(),
    "a.json.gz": gzip.compress(json.dumps(ROWS, indent=2).encode()),
    "a.json.zst": zstd(json.dumps(ROWS).encode()),
    "lines.json": json_lines(ROWS),
    "a.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "a.csv.gz": gzip.compress(as_csv(ROWS)),
    "a.csv.zst": zstd(as_csv(ROWS)),
    "a.parquet": parquet(ROWS),
    "file.arrow": arrow(ROWS, pa.ipc.new_file),
    "stream.arrow": arrow(ROWS, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_records_in_order(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name])
    found = read(tmp_path / name)
    assert [r.columns for r in found if isinstance(r, Record)] == ROWS
    assert [r.id for r in found] == [f"{name}:{number}" for number in range(3)]


@pytest.mark.parametrize("pack", [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_text_is_one_document(tmp_path: Path, pack: tuple[str, Callable[[bytes], bytes]]) -> None:
    path = tmp_path / f"a.txt{pack[0]}"
    path.write_bytes(pack[1]("one\nü".encode()))
    assert columns(path) == [{"text": "one\nü"}]


def test_one_json_object_is_one_record(tmp_path: Path) -> None:
    row = {"text": "x", "score": 1.5, "hash": 2**64, "deep": [{"p": 0.25}], "none": None}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=2))
    (found,) = columns(tmp_path / "a.json")
    assert found == row
    json.dumps(found)  # only number types that JSON has


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_all_frames_of_a_stream_are_read(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    data = json_lines(ROWS)
    (tmp_path / name).write_bytes(pack(data[:9]) + pack(data[9:]))
    assert columns(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", [n for n in FORMS if n.endswith((".gz", ".zst"))])
def test_a_truncated_compressed_stream_is_an_error(tmp_path: Path, name: str) -> None:
    for cut in range(1, len(FORMS[name])):
        (tmp_path / name).write_bytes(FORMS[name][:cut])
        with pytest.raises(SoftshardsError, match="cannot be read") as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("a.json", -1, "EOF"),
        ("a.parquet", -1, "Parquet magic"),
        ("file.arrow", -1, "Arrow file"),
        ("stream.arrow", -8, "no end mark"),  # at the end of a batch: readers report no error
    ],
)
def test_other_truncated_files_are_errors(
    tmp_path: Path, name: str, cut: int, message: str
) -> None:
    (tmp_path / name).write_bytes(FORMS[name][:cut])
    with pytest.raises(SoftshardsError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_csv_truncated_inside_quotes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\none\n"two, and the quo')
    with pytest.raises(SoftshardsError, match=r"a\.csv.*line 3: unexpected end"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"not parquet"),
        ("a.arrow", b"not arrow"),
        ("a.jsonl.zst", b"not zstd"),
        ("a.jsonl.gz", b"not gzip"),
        ("a.json", b"[1, 2"),
        ("a.json", b'[{"text": "\xff"}]'),
        ("a.json", b""),
        ("a.csv", b"text,text\na,b\n"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SoftshardsError, match="cannot be read") as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "good", "bad"),
    [
        (
            "a.jsonl",
            b'{"text": "0"}\n{"text": \n[1]\n"\xff"\n\n{"text": "\\ud83d"}\n{"text": "6"}\n',
            {"a.jsonl:0": "0", "a.jsonl:6": "6"},
            {
                "a.jsonl:1": "line 2 is not JSON",
                "a.jsonl:2": "line 3 is a JSON list, not an object",
                "a.jsonl:3": "line 4 is not UTF-8",
                "a.jsonl:5": "line 6 is not UTF-8",
            },
        ),
        ("deep.jsonl", b"[" * 100_000 + b'\n{"text": "1"}', {"deep.jsonl:1": "1"}, {
            "deep.jsonl:0": "line 1 is nested too deeply",
        }),
        ("a.json", b'["x", {"text": "1"}, null]', {"a.json:1": "1"}, {
            "a.json:0": "item 1 is a JSON str, not an object",
            "a.json:2": "item 3 is a JSON NoneType, not an object",
        }),
        (
            "a.csv",
            b'text,n\n0,1\nonly one\n"two"x,3\n\xff,4\n\n"4\n5",6\n',
            {"a.csv:0": "0", "a.csv:4": "4\n5"},
            {
                "a.csv:1": "line 3 has 1 fields, but the header has 2",
                "a.csv:2": "line 4 is not CSV",
                "a.csv:3": "line 5 is not UTF-8",
            },
        ),
        ("a.txt", b"\xff\xfe", {}, {"a.txt:0": "not UTF-8"}),
    ],
)  # fmt: skip
def test_bad_records_become_rejects_with_their_line(
    tmp_path: Path, name: str, content: bytes, good: dict[str, str], bad: dict[str, str]
) -> None:
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path / name)
    assert {r.id: r.columns["text"] for r in found if isinstance(r, Record)} == good
    rejects = {r.id: r.reason for r in found if isinstance(r, Reject)}
    assert rejects.keys() == bad.keys()
    assert all(bad[name] in reason for name, reason in rejects.items())
    assert {r.source for r in found} == {name}


def test_a_bad_arrow_row_does_not_spoil_the_others(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    text = pa.Array.from_buffers(pa.string(), 3, [None, offsets, data])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    first, bad, last = read(tmp_path / "a.parquet")
    assert isinstance(first, Record)
    assert isinstance(bad, Reject)
    assert isinstance(last, Record)
    assert (first.columns, last.columns) == ({"text": "a"}, {"text": "b"})
    assert bad.id == "a.parquet:1"
    assert "utf-8" in bad.reason


def test_columns_of_any_type_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["x"],
            "picture": [b"\xff\xd8"],
            "day": [datetime.date(2026, 1, 2)],
            "at": pa.array([1], pa.timestamp("ns")),
            "map": pa.array([{"a": 1}], pa.map_(pa.string(), pa.int64())),
            "tag": pa.array(["t"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = columns(tmp_path / "a.parquet")
    assert row["picture"] == b"\xff\xd8"
    assert row["at"].endswith("00.000000001")
    assert row["tag"] == "t"
    json.dumps(row, default=str)  # as rendering does for `meta`


def test_a_long_document_in_csv(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    (tmp_path / "a.csv").write_text(f"text\n{long}\n")
    assert columns(tmp_path / "a.csv") == [{"text": long}]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.csv.zst"]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    peaks = []
    for rows in (2_000, 16_000):
        random.seed(rows)
        made = [{"text": random.randbytes(500).hex()} for _ in range(rows)]
        plain = {"jsonl": json_lines, "json": lambda r: json.dumps(r).encode(), "csv": as_csv}
        data = plain[name.split(".")[1]](made)
        pack = gzip.compress if name.endswith("gz") else zstd if name.endswith("zst") else bytes
        (tmp_path / name).write_bytes(pack(data))
        peaks.append(peak_memory(tmp_path / name, rows))
        assert peaks[-1] < len(data) / (1 if rows == 2_000 else 8)
    assert peaks[1] < 1.5 * peaks[0]


def peak_memory(path: Path, rows: int) -> int:
    """Return the peak memory in bytes, of Python and Arrow, while the file is read."""
    (file,) = find_inputs([str(path)])
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        assert sum(isinstance(record, Record) for record in read_records(file)) == rows
        return tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
