"""Parquet files of a set, read only where their content can be as large as they state.

A footer states sizes that a reader allocates, and each page states its own again, which the footer
does not cover. Run lengths and dictionaries expand once more behind both. So every page of a column
is looked at before the column is read; that takes some microseconds per page.

"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.size_limits import base_bytes, require_expansion
from schemas.thrift_compact import PAGE, find_row_groups, parse_column, parse_struct

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
HEADERS = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
"""Field of a page's header that holds the header of its type; there, field 1 counts its values."""
PLAIN_ENCODINGS = {0, 2, 3, 8, 9}
"""PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY, BYTE_STREAM_SPLIT: those that our writer uses. The
delta encodings of strings expand without a bound."""
FIXED_WIDTH = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
"""Bytes per value by physical type: BOOLEAN, INT32, INT64, INT96, FLOAT, DOUBLE."""
FIXED_LEN_BYTE_ARRAY = 7
"""Physical type whose width the schema states: 2 of our float16, thousands of hidden states."""
COMPRESSION = {0: "UNCOMPRESSED", 1: "SNAPPY", 2: "GZIP", 4: "BROTLI", 5: "LZ4", 6: "ZSTD"}
LEVELS = 12
"""Bytes per value for levels, offsets and validity."""
COSTS = {"spans": 150, "student_spans": 150, "student_input_ids": 64}
"""Bytes per value of columns that checks turn into Python objects."""

ReadBytes = Callable[[int, int], memoryview]
"""Returns the bytes [start, stop) of a file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column of one row group.

    Attributes:
        name: the column's name, without the path inside lists and structs.
        type: its physical type, as Parquet numbers them.
        codec: its compression, as Parquet numbers them.
        values: number of values.
        start, stop: its bytes in the file.
        width: bytes per value that the schema states for FIXED_LEN_BYTE_ARRAY, else 0.
    """

    name: str
    type: int
    codec: int
    values: int
    start: int
    stop: int
    width: int


@dataclass(frozen=True, slots=True)
class Footer:
    """A file's footer.

    Attributes:
        metadata: as PyArrow reads columns by it. Do not ask it for columns of row groups.
        names: name of each column of the file, without the path inside lists and structs.
        widths: `Chunk.width` of each.
        row_groups: rows of each row group, and the offsets of its columns in `content`.
        content: the footer's bytes.
    """

    metadata: pq.FileMetaData
    names: tuple[str, ...]
    widths: tuple[int, ...]
    row_groups: tuple[tuple[int, list[int]], ...]
    content: bytes

    def chunks(self, number: int, columns: Collection[str] | None = None) -> list[Chunk]:
        """Return the columns of a row group, or some of them.

        Raises:
            ValueError: the footer states an impossible size, or fewer values than rows.
        """
        rows, offsets = self.row_groups[number]
        wanted = self.names if columns is None else frozenset(columns)
        chunks = [
            _chunk(name, width, parse_column(self.content, at))
            for name, width, at in zip(self.names, self.widths, offsets, strict=True)
            if name in wanted
        ]
        for chunk in chunks:
            if not 0 <= rows <= chunk.values:
                raise ValueError(f"column {chunk.name} has fewer values than rows")
        return chunks


def parse_footer(data: bytes | memoryview) -> Footer:
    """Parse a footer whose lists cannot state more elements than it has bytes.

    Args:
        data: the end of the file, from any point before the footer.

    Raises:
        ValueError, OSError: it is not a footer, or a size in it is impossible.
    """
    length = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != b"PAR1" or not 0 < length <= len(data) - 8:
        raise ValueError("this is not the end of a Parquet file")
    content = bytes(data[-8 - length :])
    groups = find_row_groups(content)
    source = pa.BufferReader(content)
    metadata = pq.ParquetFile(source, thrift_container_size_limit=length).metadata
    schema = metadata.schema
    columns = [schema.column(n) for n in range(metadata.num_columns)]
    names = tuple(column.path.split(".")[0] for column in columns)
    widths = tuple(max(0, column.length) for column in columns)
    if metadata.num_row_groups != len(groups) or any(len(g) != len(names) for _, g in groups):
        raise ValueError("the footer has another number of columns than its schema")
    return Footer(metadata, names, widths, tuple(groups), content)


def _chunk(name: str, width: int, column: dict[int, Any]) -> Chunk:
    if 8 in column or 9 in column or column.get(1):
        raise ValueError("a column is encrypted, or in another file")
    try:
        facts = column[3]
        data, dictionary, size = facts[9], facts.get(11, 0), facts[7]
        start = dictionary if 0 < dictionary < data else data  # as PyArrow finds it
        chunk = Chunk(name, facts[1], facts[4], facts[5], start, start + size, width)
    except KeyError as error:
        raise ValueError(f"the footer lacks facts about column {name}") from error
    if min(start, size, chunk.values) < 0:
        raise ValueError("the footer states a negative size")
    return chunk


@contextmanager
def checked_parquet(
    file: Path | bytes, columns: Collection[str] | None = None
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file whose pages were all checked; reads verify their checksums, too.

    Args:
        file: its path, or its bytes.
        columns: the columns to read; all by default.

    Raises:
        ValueError, OSError: it cannot be read, or would expand too much.
    """
    with pa.BufferReader(file) if isinstance(file, bytes) else pa.memory_map(str(file)) as source:
        stored = memoryview(source.read_buffer()).cast("B")  # Arrow's buffers have signed bytes
        footer = parse_footer(stored)
        require_plausible(
            (chunk for n in range(len(footer.row_groups)) for chunk in footer.chunks(n, columns)),
            read=lambda start, stop: stored[start:stop],
            stored=len(stored),
        )
        with pq.ParquetFile(
            source, metadata=footer.metadata, page_checksum_verification=True
        ) as opened:
            yield opened


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, and verify its page checksums.

    `pq.read_table` does the same, but first imports pyarrow.dataset and with it pandas: 0.4 s.

    Raises:
        ValueError, OSError: as `checked_parquet`.
    """
    with checked_parquet(path) as file:
        return file.read(columns)


def require_plausible(chunks: Iterable[Chunk], *, read: ReadBytes, stored: int) -> None:
    """Refuse columns that would take more memory than their bytes can be worth.

    Args:
        chunks: the columns to read at once.
        read: returns bytes of the file.
        stored: bytes of the file, or of the row groups.

    Raises:
        ValueError: a size is impossible, or the limit of `schemas.size_limits` is exceeded.
    """
    needed = largest = 0
    for chunk in chunks:
        kept, page = _needed(chunk, read)
        needed, largest = needed + kept, max(largest, page)
    # One page is in memory at a time, decompressed.
    require_expansion("the columns", needed + largest, stored)


def _needed(chunk: Chunk, read: ReadBytes) -> tuple[int, int]:
    """Return an upper bound of the memory that a column chunk takes, and its largest page."""
    name, values = chunk.name, chunk.values
    if values == 0:  # no page is read
        return 0, 0
    data = read(chunk.start, chunk.stop).cast("B")
    if len(data) != chunk.stop - chunk.start:
        raise ValueError(f"column {name} is outside the file")
    seen = at = plain = dictionary = largest = 0
    entries = data[:0]
    while at < len(data):
        kind, size, stored, count, encoding, at = page_header(data, at)
        page = data[at : at + stored]
        at += stored
        if kind == DICTIONARY_PAGE and seen == dictionary == 0:
            dictionary, entries = size, page
        elif kind in (DATA_PAGE, DATA_PAGE_V2) and encoding in PLAIN_ENCODINGS:
            seen += count
            plain += size
        else:
            raise ValueError(f"column {name} has a page that this format does not use")
        largest = max(largest, size)
    if seen != values:
        raise ValueError(f"column {name} has {seen} values instead of {values}")
    width = chunk.width if chunk.type == FIXED_LEN_BYTE_ARRAY else FIXED_WIDTH.get(chunk.type)
    cost = COSTS.get(name, LEVELS)
    if width is not None:
        return values * (width + cost) + dictionary, largest
    repeated = 0
    if dictionary:  # any entry may stand for every value
        repeated = values * dictionary
        if repeated > base_bytes() // 4:
            require_expansion(f"column {name}", dictionary, len(data))
            longest = longest_entry(entries, dictionary, COMPRESSION.get(chunk.codec, "unknown"))
            repeated = values * longest
    return values * cost + plain + dictionary + repeated, largest


def longest_entry(page: memoryview, size: int, compression: str) -> int:
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


def page_header(data: memoryview, at: int) -> tuple[int, int, int, int, int, int]:
    """Parse a page's header.

    Returns:
        (type, size, stored size, values, encoding, offset of the page's content).

    Raises:
        ValueError: this is not a page's header.
    """
    fields, at = parse_struct(data, at, PAGE)
    try:
        kind, size, stored = fields[1], fields[2], fields[3]
        own = fields[HEADERS[kind]]
        count, encoding = own[1], own[4 if kind == DATA_PAGE_V2 else 2]
    except KeyError as error:
        raise ValueError("a page's header cannot be read") from error
    if min(size, stored, count) < 0 or at + stored > len(data):
        raise ValueError("a page's header states an impossible size")
    return kind, size, stored, count, encoding, at
