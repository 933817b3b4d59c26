"""Parquet files of strangers: pages that are as large as their bytes can be worth.

A footer and every page state sizes that a reader allocates, and a dictionary's entry may stand for
every row. The files of a label set are checked more strictly (`schemas.parquet_sizes`); other
writers use all encodings, and repeat long texts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from labeler.labeling.inputs.arrow_checks import ArrowDamage, check_rows
from schemas.parquet_sizes import (
    COMPRESSION,
    DICTIONARY_PAGE,
    Chunk,
    longest_entry,
    page_header,
    parse_footer,
)
from schemas.size_limits import base_bytes, require_expansion

CODECS = COMPRESSION | {7: "lz4_raw"}
"""Arrow's names of codecs, as Parquet numbers them. 5, an older framing of LZ4, has none."""
BYTE_ARRAY = 6
"""The physical type of strings, as Parquet numbers it."""
VALUE_BYTES = 8
"""Bytes of a value of a list, at most."""


def parquet_batches(stream: io.BufferedReader, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in batches of at most `rows`, fewer where they are large.

    Raises:
        ArrowDamage: the file is damaged, or expands too much.
        pa.ArrowException: it cannot be read.
    """
    stored = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    file = pq.ParquetFile(stream, thrift_container_size_limit=max(1, stored))
    check_rows(file.metadata.num_rows, stored)
    data = memoryview(pa.memory_map(stream.name).read_buffer()).cast("B")
    paths = [file.schema.column(n).path for n in range(file.metadata.num_columns)]
    try:
        footer = parse_footer(data)
    except (ValueError, OSError) as error:
        raise ArrowDamage(f"the footer: {error}") from error
    for number, (group_rows, _) in enumerate(footer.row_groups):
        try:
            largest = _largest_row(dict(zip(paths, footer.chunks(number))), data)
        except ValueError as error:
            raise ArrowDamage(f"row group {number}: {error}") from error
        check_rows(group_rows, stored)
        fitting = max(1, min(rows, base_bytes() // 2 // max(1, largest)))  # 4 copies of a batch
        yield from file.iter_batches(batch_size=fitting, row_groups=[number])


def _largest_row(chunks: dict[str, Chunk], data: memoryview) -> int:
    """Return the bytes that a row may take because of the dictionaries of flat columns.

    Args:
        chunks: the columns of a row group, by their paths.
        data: the file.

    Raises:
        ValueError: a page's size is impossible, or a column expands too much.
    """
    largest = 0
    for name, chunk in chunks.items():
        if not chunk.start <= chunk.stop <= len(data):
            raise ValueError(f"column {name} is outside the file")
        entries, size = _dictionary(data[chunk.start : chunk.stop], name)
        if chunk.type != BYTE_ARRAY:
            size = 0
        if "." not in name:
            largest += size
            continue
        # A row may hold all values of a list, each the longest entry.
        if chunk.values * size > base_bytes():
            size = _longest(entries, size, CODECS.get(chunk.codec, "unknown"))
        require_expansion(f"column {name}", chunk.values * (VALUE_BYTES + size), len(data))
    return largest


def _dictionary(stored: memoryview, name: str) -> tuple[memoryview, int]:
    """Return the dictionary of a column chunk as stored, and its size; all pages are looked at."""
    at = size = 0
    entries = stored[:0]
    while at < len(stored):
        kind, page_bytes, length, _, _, at = page_header(stored, at)
        # One page is in memory at a time, decompressed.
        require_expansion(f"column {name}", page_bytes, len(stored))
        if kind == DICTIONARY_PAGE:
            entries, size = stored[at : at + length], page_bytes
        at += length
    return entries, size


def _longest(entries: memoryview, size: int, compression: str) -> int:
    """Return the length of the longest entry of a dictionary, or an upper bound."""
    try:
        return longest_entry(entries, size, compression)
    except (OSError, ValueError, NotImplementedError):
        return size
