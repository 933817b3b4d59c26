"""One reader a format: bytes to numbered columns, or to the reason why a record is bad."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from labeler.labeling.inputs.zstd_stream import ZstdStream

SUFFIX = re.compile(r"\.((jsonl|json|csv|txt)(\.(gz|zst))?|parquet|arrow)$")
KNOWN = ".jsonl, .json, .csv, .txt (each also .gz, .zst), .parquet, .arrow"
SEEKABLE = (".parquet", ".arrow")
"""Suffixes of files that cannot be read from a stream."""
READ_ERRORS = (
    *(OSError, pa.ArrowException, zstandard.ZstdError),
    *(ijson.JSONError, csv.Error, RecursionError),
)
"""What a reader raises when the file as a whole is bad."""

BLOCK = 1 << 18
ROWS = 256
FIELD_LIMIT = 1 << 28
ARROW_FILE = b"ARROW1"
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
BOM = b"\xef\xbb\xbf"

Item = tuple[int, dict[str, Any] | str]
"""A record's number in its file, and its columns, or why it is bad."""


def suffix_of(name: str) -> str | None:
    """The suffix of `name` that says how to read it (`.jsonl`, `.csv.gz`), or None."""
    found = SUFFIX.search(name)
    return found and found[0]


def read_items(stream: io.BufferedReader, suffix: str) -> Iterator[Item]:
    """Read a file in order, with memory for a block and a record.

    A compressed stream that was cut off is an error, never the end of the data.

    Args:
        stream: the file's bytes; parquet and arrow need one that can seek.
        suffix: one that `suffix_of` gives.

    Raises:
        READ_ERRORS: the file as a whole is damaged, or is not what its name says.
    """
    kind, _, packing = suffix[1:].partition(".")
    if packing == "zst":
        stream = io.BufferedReader(ZstdStream(stream), BLOCK)
    elif packing == "gz":  # unlike the standard library's reader, Arrow's takes no cut for the end
        stream = io.BufferedReader(pa.CompressedInputStream(stream, "gzip"), BLOCK)
    match kind:
        case "jsonl":
            return _json_lines(stream)
        case "json":
            return _json(stream)
        case "csv":
            return _csv(stream)
        case "txt":
            return _text(stream)
        case "parquet":
            return _rows(pq.ParquetFile(stream).iter_batches(batch_size=ROWS))
        case _:
            return _rows(_arrow(stream))


def _json_lines(stream: io.BufferedReader) -> Iterator[Item]:
    for number, line in enumerate(stream):
        if line.strip():
            yield number, _json_line(line, f"line {number + 1}")


def _json_line(line: bytes, what: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line or b"\\uD" in line:  # an escape may be half a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        return f"{what} is not UTF-8: {error}"
    except (ValueError, RecursionError) as error:
        return f"{what} is not JSON: {error}"
    return _object(value, what)


def _object(value: Any, what: str) -> dict[str, Any] | str:
    if isinstance(value, dict):
        return value
    return f"{what} is a JSON {type(value).__name__}, not an object"


def _json(stream: io.BufferedReader) -> Iterator[Item]:
    """The items of a top-level array, or the objects that stand one after the other."""
    if stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    while stream.peek(1)[:1].isspace():
        stream.read(1)
    array = stream.peek(1).startswith(b"[")
    # Not `use_float`: with it, an integer of more than 64 bits would be an error.
    items = ijson.items(stream, "item" if array else "", multiple_values=not array)
    for number, value in enumerate(items):
        yield number, _object(_floats(value), f"item {number + 1}")


def _floats(value: Any) -> Any:
    """`value` with floats where ijson put decimals."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _floats(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_floats(part) for part in value]
    return value


def _text(stream: io.BufferedReader) -> Iterator[Item]:
    try:
        item: dict[str, Any] | str = {"text": io.TextIOWrapper(stream, "utf-8-sig").read()}
    except UnicodeDecodeError as error:
        item = f"not UTF-8: {error}"
    yield 0, item


def _csv(stream: io.BufferedReader) -> Iterator[Item]:
    """Rows under a header; all values are strings."""
    csv.field_size_limit(FIELD_LIMIT)  # documents are longer than the module allows by itself
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True)  # otherwise a file cut off inside quotes would pass
    header = next(rows, [])
    if len(set(header)) < len(header):
        raise csv.Error(f"two columns have the same name: {', '.join(header)}")
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):  # the others lose track of the rows
                raise csv.Error(f"line {rows.line_num}: {error}") from error
            yield number, f"line {rows.line_num} is not CSV: {error}"
        else:
            if not row:
                continue
            yield number, _csv_row(header, row, f"line {rows.line_num}")
        number += 1


def _csv_row(header: list[str], row: list[str], what: str) -> dict[str, Any] | str:
    if len(row) != len(header):
        return f"{what} has {len(row)} fields, the header has {len(header)}"
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        return f"{what} is not UTF-8: {error}"
    return dict(zip(header, row))


def _arrow(stream: io.BufferedReader) -> Iterator[pa.RecordBatch]:
    """Record batches of an IPC file, or of an IPC stream."""
    if stream.peek(len(ARROW_FILE)).startswith(ARROW_FILE):
        file = pa.ipc.open_file(stream)
        yield from (file.get_batch(index) for index in range(file.num_record_batches))
        return
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - len(ARROW_END)))
    if stream.read() != ARROW_END:
        raise pa.ArrowInvalid("the Arrow stream has no end mark: it was cut off, or its writer was")
    stream.seek(0)
    yield from pa.ipc.open_stream(stream)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            for item in _python(_without_nanoseconds(batch.slice(start, ROWS))):
                yield number, item
                number += 1


def _without_nanoseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times that Python's datetime cannot hold, as strings."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            batch = batch.set_column(index, field.name, batch[index].cast(pa.string()))
    return batch


def _python(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """Rows as Python values; where one of them has no such value, the others still do."""
    try:
        return batch.to_pylist()
    except ValueError as error:  # such as a string that is not UTF-8
        if batch.num_rows > 1:
            return [row for i in range(batch.num_rows) for row in _python(batch.slice(i, 1))]
        return [f"a column cannot be read: {error}"]
