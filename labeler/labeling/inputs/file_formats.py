"""One reader per format: from bytes to numbered records, or to the reason why a record is bad."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator

import pyarrow as pa

from labeler.labeling.inputs.arrow_checks import ArrowDamage, checked_batches, record_slices
from labeler.labeling.inputs.arrow_values import to_python
from labeler.labeling.inputs.ipc_sizes import check_messages
from labeler.labeling.inputs.json_items import BadJson, JsonItems, read_value
from labeler.labeling.inputs.packed_stream import UNPACK_ERRORS, PackedStream
from labeler.labeling.inputs.parquet_checks import parquet_batches
from labeler.labeling.inputs.record_limits import BadValue, largest_record, too_large

SUFFIX = re.compile(
    r"\.((jsonl|ndjson|json|csv|txt)(\.(gz|zst|bz2|xz))?|parquet|arrow)$", re.IGNORECASE
)
KNOWN_SUFFIXES = (
    ".jsonl, .ndjson, .json, .csv, .txt (each also .gz, .zst, .bz2, .xz), .parquet, .arrow"
)
SEEKABLE = (".parquet", ".arrow")
"""Suffixes of files that cannot be read from a stream."""

BLOCK = 1 << 18
ROWS = 256
ARROW_FILE = b"ARROW1"
ARROW_FILE_START = 8
"""Offset of the stream in a file."""
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
"""First bytes of UTF-16 and UTF-32."""

Columns = dict[str, object]
"""A record's values by column."""
Item = tuple[int, Columns | str]
"""A record's number in its file, and its columns or the reason why it is bad."""


class BadFile(ValueError):
    """The file as a whole cannot be read."""


READ_ERRORS = (
    *(OSError, pa.ArrowException, *UNPACK_ERRORS),
    *(BadFile, BadJson, ArrowDamage, UnicodeDecodeError, csv.Error, RecursionError),
)
"""Errors that a reader raises if the file as a whole is bad."""


def suffix_of(name: str) -> str | None:
    """Return the suffix of `name` that names its format (`.jsonl`, `.csv.gz`), or None.

    `.JSONL` and `.ndjson` are `.jsonl`.
    """
    found = SUFFIX.search(name)
    return found and found[0].lower().replace(".ndjson", ".jsonl")


def read_items(stream: io.BufferedReader, suffix: str) -> Iterator[Item]:
    """Read a file in order, with memory for one block and one record.

    A truncated compressed stream is an error, never the end of the data.

    Args:
        stream: the file's bytes; Parquet and Arrow need a stream that can seek.
        suffix: a result of `suffix_of`.

    Raises:
        READ_ERRORS: the file as a whole is damaged, or its suffix is wrong.
    """
    kind, _, packing = suffix[1:].partition(".")
    if packing:
        stream = io.BufferedReader(PackedStream(stream, packing), BLOCK)
    if kind in ("jsonl", "json", "csv") and (wide := _wide(stream.peek(4)[:4])):
        raise BadFile(f"{wide}; convert it with `iconv -f {wide.split()[-1]} -t UTF-8`")
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
            return _rows(parquet_batches(stream, ROWS))
        case _:
            return _rows(_arrow(stream))


def _wide(start: bytes) -> str | None:
    """Return the reason why a text that starts with these bytes is not UTF-8, if they show it."""
    if not start.startswith(WIDE_BOMS) and b"\0" not in start:
        return None
    wide = start.startswith(b"\0\0") or start.endswith(b"\0\0")
    return f"the text is not UTF-8 but UTF-{32 if wide else 16}"


def _json_lines(stream: io.BufferedReader) -> Iterator[Item]:
    most, number = largest_record(), 0
    while line := stream.readline(most + 1):
        what = f"line {number + 1}"
        if len(line) > most:
            while line and not line.endswith(b"\n"):
                line = stream.readline(BLOCK)
            yield number, f"{what} is {too_large()}"
        elif line.strip():
            yield number, _json_line(line, what)
        number += 1


def _json_line(line: bytes, what: str) -> Columns | str:
    try:
        value = read_value(line.decode("utf-8-sig"))
    except UnicodeError as error:
        return f"{what} is not UTF-8: {error}"
    except BadJson as error:
        return f"{what} is not JSON: {error}"
    except BadValue as error:
        return f"{what} {error}"
    return _object(value, what)


def _object(value: object, what: str) -> Columns | str:
    if isinstance(value, dict):
        return value
    return f"{what} is a JSON {type(value).__name__}, not an object"


def _json(stream: io.BufferedReader) -> Iterator[Item]:
    """Read the items of a top-level array, or a sequence of objects."""
    for number, value in enumerate(JsonItems(stream)):
        what = f"item {number + 1}"
        if isinstance(value, BadValue):
            yield number, f"{what} {value}"
        else:
            yield number, _object(value, what)


def _text(stream: io.BufferedReader) -> Iterator[Item]:
    most, wide = largest_record(), _wide(stream.peek(4)[:4])
    item: Columns | str = f"the document is {too_large()}"
    # Twice as much, because line ends may be two bytes that count as one.
    data = io.BytesIO(stream.read(2 * most + 1))
    if not stream.read(1):
        try:
            text = io.TextIOWrapper(data, "utf-8-sig").read(most + 1)
            if len(text) <= most:
                item = {"text": text}
        except UnicodeDecodeError as error:
            item = wide or f"not UTF-8: {error}"
    yield 0, item


def _csv(stream: io.BufferedReader) -> Iterator[Item]:
    """Read rows under a header; all values are strings."""
    csv.field_size_limit(largest_record())  # documents are longer than the module's default limit
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    lines = _CsvLines(text)
    rows = csv.reader(lines, strict=True)  # reports a file truncated inside quotes
    header = next(rows, [])
    if len(set(header)) < len(header):
        raise BadFile(f"two columns have the same name: {', '.join(header)}")
    number = 0
    while True:
        lines.size = 0
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


class _CsvLines:
    """The lines of a CSV file, of which `size` characters were read since it was set to 0."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._most, self.size = text, largest_record(), 0

    def __iter__(self) -> Iterator[str]:
        number = 0
        while line := self._text.readline(self._most + 1):
            number += 1
            self.size += len(line)
            if self.size > self._most:
                raise BadFile(f"the row that ends in line {number} is {too_large()}")
            yield line


def _csv_row(header: list[str], row: list[str], what: str) -> Columns | str:
    if len(row) != len(header):
        return f"{what} has {len(row)} fields, but the header has {len(header)}"
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        return f"{what} is not UTF-8: {error}"
    return dict(zip(header, row))


def _arrow(stream: io.BufferedReader) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an IPC file or an IPC stream.

    A file is a stream between two marks; its footer, which may name other bytes, is only counted.
    """
    stored = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start, expected = 0, None
    if stream.peek(len(ARROW_FILE)).startswith(ARROW_FILE):
        start, expected = ARROW_FILE_START, pa.ipc.open_file(stream).num_record_batches
    else:
        stream.seek(max(0, stored - len(ARROW_END)))
        if stream.read() != ARROW_END:
            raise BadFile("the Arrow stream has no end mark: it is truncated or unfinished")
    with pa.memory_map(stream.name) as source:
        source.seek(start)
        try:
            found = check_messages(source)
        except ValueError as error:
            raise ArrowDamage(str(error)) from error
    if expected not in (None, found):
        raise ArrowDamage(f"the footer names {expected} record batches, the file has {found}")
    stream.seek(start)
    yield from checked_batches(pa.ipc.open_stream(stream), stored)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for some in record_slices(batch, ROWS):
            for item in [some] if isinstance(some, str) else to_python(some):
                yield number, item
                number += 1
