"""`index/`: the byte ranges of the journal in Parquet pages, written when a set is finalized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow import INDEX_SCHEMA, parquet_options
from schemas.arrow_alloc import as_arrow, as_numpy
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError, first_line
from schemas.file_names import INDEX, shard_name
from schemas.fingerprint import sha256_file
from schemas.journal import UnitEntry
from schemas.manifest import FileDigest
from schemas.parquet_sizes import checked_parquet
from schemas.row_groups import COUNTS, FOOTER_ROW_GROUP, RowGroups
from schemas.set_paths import set_file
from schemas.size_limits import INDEX_ROW_BYTES, LARGEST_COUNT

UNITS_PER_PAGE = 4096
TEXTS = ("shard", "sha256")
SPARE_ROWS = 16_384
"""Rows of an index of any size: shards that are equal have equal hashes, which compress."""


def write_index(directory: Path, entries: Iterable[UnitEntry]) -> tuple[FileDigest, ...]:
    """Write the index pages of finished units; equal entries give equal bytes."""
    pages: list[FileDigest] = []
    rest = iter(entries)
    while batch := list(islice(rest, UNITS_PER_PAGE)):
        name = f"{INDEX}/page-{len(pages):06d}.parquet"
        options = parquet_options(INDEX_SCHEMA, dictionary=["shard"])
        with atomic_path(directory / name) as tmp:
            pq.write_table(_table(batch), tmp, **options)
        pages.append(FileDigest(path=name, sha256=sha256_file(directory / name)))
    return tuple(pages)


def index_entries(entries: Iterable[UnitEntry]) -> RowGroups:
    """Return the row groups of finished units: the index of a set that is still being labeled."""
    return RowGroups.of(_table(entries))


def _table(entries: Iterable[UnitEntry]) -> pa.Table:
    rows = [row for entry in entries for row in _rows(entry)]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def _rows(entry: UnitEntry) -> Iterator[dict[str, object]]:
    ranges = [*enumerate(entry.row_groups), (FOOTER_ROW_GROUP, entry.footer)]
    for row_group, stretch in ranges:
        yield {
            "unit": entry.unit,
            "shard": entry.shard,
            "row_group": row_group,
            **stretch.model_dump(),
        }


def read_index(directory: Path, pages: Iterable[FileDigest]) -> RowGroups:
    """Read index pages.

    Raises:
        LabelSetError: a page is missing or altered, or is not one that `write_index` writes.
    """
    tables: list[pa.Table] = []
    units = np.empty(0, np.int64)
    stored = rows = 0
    for page in pages:
        path = set_file(directory, page.path)
        if not path.is_file() or sha256_file(path) != page.sha256:
            state = "altered" if path.is_file() else "missing"
            raise LabelSetError(
                f"an index page is {state}",
                path=path,
                hint="run the same `labeler label` command: it rebuilds the index from the journal",
            )
        stored += path.stat().st_size
        try:
            table = _read_page(path)
            rows += table.num_rows
            if rows > SPARE_ROWS + stored // INDEX_ROW_BYTES:
                raise ValueError(f"{rows:,} rows are too many for {stored:,} bytes")
            units = np.concatenate([units, _check_page(table)])
            if len(np.unique(units)) != len(units):
                raise ValueError("a unit occurs twice")
        except (ValueError, pa.ArrowException, OSError) as error:
            raise LabelSetError(
                f"this is not an index page: {first_line(error)}", path=path
            ) from error
        tables.append(table)
    return RowGroups.of(pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table())


def _read_page(path: Path) -> pa.Table:
    with checked_parquet(path) as file:
        if not file.schema_arrow.remove_metadata().equals(INDEX_SCHEMA):
            raise ValueError("its columns differ")
        if file.metadata.num_rows > SPARE_ROWS + path.stat().st_size // INDEX_ROW_BYTES:
            raise ValueError(f"{file.metadata.num_rows:,} rows are too many for its size")
        return file.read()


def _check_page(table: pa.Table) -> NDArray[np.int64]:
    """Check what `UnitEntry` checks of an entry, over all shards of a page at once.

    A page holds the rows of a shard together, in the order of the file, its footer last.

    Returns:
        The units of the page.

    Raises:
        ValueError: the page breaks a rule.
    """
    if any(column.null_count for column in table.columns):
        raise ValueError("a value is missing")
    numbers = {name: as_numpy(table[name]) for name in table.column_names if name not in TEXTS}
    group, start, stop = numbers["row_group"], numbers["start"], numbers["stop"]
    footers = np.flatnonzero(group == FOOTER_ROW_GROUP)
    if len(group) != (footers[-1] + 1 if len(footers) else 0):
        raise ValueError("the last shard has no footer")
    sizes = np.diff(footers, prepend=-1)
    first = np.repeat(footers - sizes + 1, sizes)  # of each row: the first row of its shard
    place = np.arange(len(group))
    units: NDArray[np.int64] = numbers["unit"][footers].astype(np.int64)
    counts = np.stack([numbers[name] for name in COUNTS])
    for broken, what in (
        (numbers["unit"] != np.repeat(units, sizes), "a row group of another unit"),
        (units < 0, "a unit below 0"),
        (group != np.where(group == FOOTER_ROW_GROUP, group, place - first), "out of order"),
        (start != np.where(place == first, 0, np.roll(stop, 1)), "bytes do not follow"),
        (stop <= start, "a row group has no bytes"),
        ((counts < 0) | (counts > LARGEST_COUNT), "a count is not possible"),
        (counts[0] > stop - start, "a row group has more rows than bytes"),
        (stop > LARGEST_COUNT, "a file is too large"),
    ):
        if broken.any():
            raise ValueError(what)
    shards = table["shard"]
    names = [shard_name(int(unit)) for unit in units]
    if shards.take(as_arrow(footers)).to_pylist() != names or not shards.equals(
        shards.take(as_arrow(np.repeat(footers, sizes)))
    ):
        raise ValueError("a unit has another's shard")
    if not pc.all(pc.match_substring_regex(table["sha256"], "^[0-9a-f]{64}$"), min_count=0).as_py():
        raise ValueError("a value is not a hash")
    return units
