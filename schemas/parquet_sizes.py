"""Parquet files of a set, read only where their content can be as large as they state.

A footer states sizes that a reader allocates, and each page states its own again, which the footer
does not cover. Run lengths and dictionaries expand once more behind both. So every page of a column
is looked at before the column is read; that takes some microseconds per page.

Page headers are in Thrift's compact protocol:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.size_limits import base_bytes, require_expansion

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
HEADERS = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
"""Field of a page's header that holds the header of its type; there, field 1 counts its values."""
PLAIN_ENCODINGS = {0, 2, 3, 8, 9}
"""PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY, BYTE_STREAM_SPLIT: those that our writer uses. The
delta encodings of strings expand without a bound."""
I32, BINARY, STRUCT = 5, 8, 12
FIXED_WIDTH = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
LEVELS = 12
"""Bytes per value for levels, offsets and validity."""
COSTS = {"spans": 150, "student_spans": 150, "student_input_ids": 64}
"""Bytes per value of columns that checks turn into Python objects."""

ReadBytes = Callable[[int, int], memoryview]
"""Returns the bytes [start, stop) of a file."""


def read_metadata(source: pa.NativeFile) -> pq.FileMetaData:
    """Read a footer whose lists cannot state more elements than the footer has bytes.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    return pq.ParquetFile(source, thrift_container_size_limit=max(1, source.size())).metadata


@contextmanager
def checked_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file whose pages were all checked; reads verify their checksums, too.

    Raises:
        ValueError, OSError: it cannot be read, or would expand too much.
    """
    with pa.memory_map(str(path)) as source:
        stored = memoryview(source.read_buffer())
        with pq.ParquetFile(
            source,
            page_checksum_verification=True,
            thrift_container_size_limit=max(1, len(stored)),
        ) as file:
            require_plausible(
                file.metadata,
                range(file.metadata.num_row_groups),
                None,
                read=lambda start, stop: stored[start:stop],
                stored=len(stored),
            )
            yield file


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, and verify its page checksums.

    `pq.read_table` does the same, but first imports pyarrow.dataset and with it pandas: 0.4 s.

    Raises:
        ValueError, OSError: as `checked_parquet`.
    """
    with checked_parquet(path) as file:
        return file.read(columns)


def require_plausible(
    metadata: pq.FileMetaData,
    groups: Collection[int],
    columns: Collection[str] | None,
    *,
    read: ReadBytes,
    stored: int,
) -> dict[str, int]:
    """Refuse row groups that would take more memory than their bytes can be worth.

    Args:
        metadata: the file's footer.
        groups: the row groups to read at once.
        columns: the columns to read; None reads all.
        read: returns bytes of the file.
        stored: bytes of the file, or of the row groups.

    Returns:
        The number of values of each column in the last row group, by its name.

    Raises:
        ValueError: a size is impossible, or the limit of `schemas.size_limits` is exceeded.
    """
    needed, counts = 0, dict[str, int]()
    for number in groups:
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            name = chunk.path_in_schema.split(".")[0]
            if columns is None or name in columns:
                if not 0 <= group.num_rows <= chunk.num_values:
                    raise ValueError(f"column {name} has fewer values than rows")
                needed += _needed(metadata.schema.column(index), chunk, name, read)
                counts[name] = chunk.num_values
                require_expansion(f"column {name}", needed, stored)
    return counts


def chunk_range(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Return the bytes [start, stop) of a column chunk."""
    start: int = chunk.data_page_offset
    dictionary: int | None = chunk.dictionary_page_offset
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    return start, start + int(chunk.total_compressed_size)


def _needed(
    column: pq.ColumnSchema, chunk: pq.ColumnChunkMetaData, name: str, read: ReadBytes
) -> int:
    """Return an upper bound of the memory that a column chunk takes, from its pages."""
    values = chunk.num_values
    if values == 0:  # no page is read
        return 0
    start, stop = chunk_range(chunk)
    if start < 0 or stop < start or chunk.file_path:
        raise ValueError(f"column {name} is outside the file")
    data = read(start, stop).cast("B")  # Arrow's buffers have signed bytes
    if len(data) != stop - start:
        raise ValueError(f"column {name} is outside the file")
    seen = at = plain = dictionary = 0
    entries = data[:0]
    while at < len(data):
        kind, size, stored, count, encoding, at = _page(data, at)
        page = data[at : at + stored]
        at += stored
        if kind == DICTIONARY_PAGE and seen == dictionary == 0:
            dictionary, entries = size, page
        elif kind in (DATA_PAGE, DATA_PAGE_V2) and encoding in PLAIN_ENCODINGS:
            seen += count
            plain += size
        else:
            raise ValueError(f"column {name} has a page that this format does not use")
        # One page is in memory at a time, decompressed.
        require_expansion(f"column {name}", size, len(data))
    if seen != values or at != len(data):
        raise ValueError(f"column {name} has {seen} values instead of {values}")
    width = FIXED_WIDTH.get(chunk.physical_type)
    if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY":
        width = column.length
    cost = COSTS.get(name, LEVELS)
    if width is not None:
        return int(values * (width + cost) + dictionary)
    repeated = 0
    if dictionary:  # any entry may stand for every value
        repeated = values * dictionary
        if repeated > base_bytes() // 4:
            repeated = values * _longest_entry(entries, dictionary, chunk.compression)
    return int(values * cost + plain + dictionary + repeated)


def _longest_entry(page: memoryview, size: int, compression: str) -> int:
    """Return the length of the longest string in a dictionary's page."""
    content: bytes | memoryview = page
    if compression != "UNCOMPRESSED":
        content = pa.Codec(compression.lower()).decompress(page, size, asbytes=True)
    at = longest = 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        longest = max(longest, length)
        at += 4 + length
    return longest


def _page(data: memoryview, at: int) -> tuple[int, int, int, int, int, int]:
    """Parse a page's header.

    Returns:
        (type, size, stored size, values, encoding, offset of the page's content).

    Raises:
        ValueError: this is not a page's header.
    """
    try:
        fields, at = _struct(data, at, 0)
        kind, size, stored = fields[1], fields[2], fields[3]
        own = fields[HEADERS[kind]]
        count, encoding = own[1], own[4 if kind == DATA_PAGE_V2 else 2]
        possible = min(size, stored, count) >= 0 and at + stored <= len(data)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("a page's header cannot be read") from error
    if not possible:
        raise ValueError("a page's header states an impossible size")
    return kind, size, stored, count, encoding, at


def _struct(data: memoryview, at: int, depth: int) -> tuple[dict, int]:  # type: ignore[type-arg]
    """Parse a struct: its 32-bit integers and structs by field; other fields are skipped."""
    fields: dict = {}  # type: ignore[type-arg]
    field = 0
    if depth > 4:
        raise ValueError("a page's header is nested too deeply")
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        if kind == I32:
            fields[field], at = _integer(data, at)
            if not -(1 << 31) <= fields[field] < 1 << 31:
                raise ValueError("a page's header states an impossible size")
        elif kind == STRUCT:
            fields[field], at = _struct(data, at, depth + 1)
        elif kind in (1, 2):  # booleans are in the type
            pass
        elif kind in (4, 6):
            _, at = _integer(data, at)
        elif kind == BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind == 3:
            at += 1
        elif kind == 7:
            at += 8
        else:  # page headers have no lists
            raise ValueError("a page's header cannot be read")
    return fields, at + 1


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a page's header cannot be read")
