"""One reader per format: from bytes to numbered records, or to the reason why a record is bad."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from labeler.labeling.inputs.zstd_stream import ZstdStream
from schemas import SoftshardsError

SUFFIX = re.compile(r"\.((jsonl|json|csv|txt)(\.(gz|zst))?|parquet|arrow)$")
KNOWN_SUFFIXES = ".jsonl, .json, .csv, .txt (each also .gz, .zst), .parquet, .arrow"
SEEKABLE = (".parquet", ".arrow")
"""Suffixes of files that cannot be read from a stream."""

BLOCK = 1 << 18
ROWS = 256
FIELD_LIMIT = 1 << 28
ARROW_FILE = b"ARROW1"
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
BOM = b"\xef\xbb\xbf"

Columns = dict[str, object]
"""A record's values by column."""
Item = tuple[int, Columns | str]
"""A record's number in its file, and its columns or the reason why it is bad."""


class BadFile(ValueError):
    """The file as a whole cannot be read."""


READ_ERRORS = (
    *(OSError, pa.ArrowException, zstandard.ZstdError),
    *(BadFile, csv.Error, RecursionError),
)
"""Errors that a reader raises if the file as a whole is bad."""


def suffix_of(name: str) -> str | None:
    """Return the suffix of `name` that names its format (`.jsonl`, `.csv.gz`), or None."""
    found = SUFFIX.search(name)
    return found and found[0]


def read_items(stream: io.BufferedReader, suffix: str) -> Iterator[Item]:
    """Read a file in order, with memory for one block and one record.

    A truncated compressed stream is an error, never the end of the data.

    Args:
        stream: the file's bytes; Parquet and Arrow need a stream that can seek.
        suffix: a result of `suffix_of`.

    Raises:
        READ_ERRORS: the file as a whole is damaged, or its suffix is wrong.
        SoftshardsError: the package for this format is not installed.
    """
    kind, _, packing = suffix[1:].partition(".")
    if packing == "zst":
        stream = io.BufferedReader(ZstdStream(stream), BLOCK)
    elif packing == "gz":  # unlike Python's reader, Arrow's reports truncation
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


def _json_line(line: bytes, what: str) -> Columns | str:
    try:
        value: object = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line or b"\\uD" in line:  # an escape may be half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        return f"{what} is not UTF-8: {error}"
    except (ValueError, RecursionError) as error:
        return f"{what} is not JSON: {error}"
    return _object(value, what)


def _object(value: object, what: str) -> Columns | str:
    if isinstance(value, dict):
        return value
    return f"{what} is a JSON {type(value).__name__}, not an object"


def _json(stream: io.BufferedReader) -> Iterator[Item]:
    """Read the items of a top-level array, or a sequence of objects."""
    try:
        import ijson
        from ijson.common import JSONError
    except ImportError as error:
        raise SoftshardsError(
            "reading .json needs the package ijson, which is not installed",
            hint="pip install ijson, or convert the file to JSON lines (.jsonl)",
        ) from error

    if stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    while stream.peek(1)[:1].isspace():
        stream.read(1)
    array = stream.peek(1).startswith(b"[")
    # Not `use_float`: it rejects integers of more than 64 bits.
    items = ijson.items(stream, "item" if array else "", multiple_values=not array)
    try:
        for number, value in enumerate(items):
            yield number, _object(_decimals_to_floats(value), f"item {number + 1}")
    except JSONError as error:
        raise BadFile(str(error)) from error


def _decimals_to_floats(value: object) -> object:
    """Replace the decimals that ijson reads with floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _decimals_to_floats(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_decimals_to_floats(part) for part in value]
    return value


def _text(stream: io.BufferedReader) -> Iterator[Item]:
    try:
        item: Columns | str = {"text": io.TextIOWrapper(stream, "utf-8-sig").read()}
    except UnicodeDecodeError as error:
        item = f"not UTF-8: {error}"
    yield 0, item


def _csv(stream: io.BufferedReader) -> Iterator[Item]:
    """Read rows under a header; all values are strings."""
    csv.field_size_limit(FIELD_LIMIT)  # documents are longer than the module's default limit
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True)  # reports a file truncated inside quotes
    header = next(rows, [])
    if len(set(header)) < len(header):
        raise BadFile(f"two columns have the same name: {', '.join(header)}")
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):  # after other errors the rows are out of step
                raise BadFile(f"line {rows.line_num}: {error}") from error
            yield number, f"line {rows.line_num} is not CSV: {error}"
        else:
            if not row:
                continue
            yield number, _csv_row(header, row, f"line {rows.line_num}")
        number += 1


def _csv_row(header: list[str], row: list[str], what: str) -> Columns | str:
    if len(row) != len(header):
        return f"{what} has {len(row)} fields, but the header has {len(header)}"
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        return f"{what} is not UTF-8: {error}"
    return dict(zip(header, row))


def _arrow(stream: io.BufferedReader) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an IPC file or an IPC stream."""
    if stream.peek(len(ARROW_FILE)).startswith(ARROW_FILE):
        file = pa.ipc.open_file(stream)
        yield from (file.get_batch(index) for index in range(file.num_record_batches))
        return
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - len(ARROW_END)))
    if stream.read() != ARROW_END:
        raise BadFile("the Arrow stream has no end mark: it is truncated or unfinished")
    stream.seek(0)
    yield from pa.ipc.open_stream(stream)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            for item in _to_python(_nanoseconds_to_text(batch.slice(start, ROWS))):
                yield number, item
                number += 1


def _nanoseconds_to_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert times that Python's datetime cannot represent to strings."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            batch = batch.set_column(index, field.name, batch[index].cast(pa.string()))
    return batch


def _to_python(batch: pa.RecordBatch) -> list[Columns | str]:
    """Convert rows to Python values; one that cannot be converted does not affect the others."""
    try:
        rows: list[Columns | str] = batch.to_pylist()
        return rows
    except ValueError as error:  # such as a string that is not UTF-8
        if batch.num_rows > 1:
            return [row for i in range(batch.num_rows) for row in _to_python(batch.slice(i, 1))]
        return [f"a column cannot be read: {error}"]
