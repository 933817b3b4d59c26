"""`index/`: the byte ranges of the journal in Parquet pages, written when a set is finalized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow import INDEX_SCHEMA, LENGTHS, parquet_options
from schemas.arrow_alloc import as_arrow, as_numpy
from schemas.arrow_lists import list_offsets, one_array
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError, first_line
from schemas.file_names import INDEX, hidden_name, shard_name
from schemas.fingerprint import sha256_bytes, sha256_file
from schemas.journal import UnitEntry
from schemas.manifest import FileDigest
from schemas.parquet_sizes import checked_parquet
from schemas.row_groups import COUNTS, FOOTER_ROW_GROUP, IndexPage, RowGroups
from schemas.row_lengths import lengths_from_text
from schemas.set_paths import set_file
from schemas.size_limits import INDEX_ROW_BYTES, LARGEST_COUNT

UNITS_PER_PAGE = 4096
ROWS_PER_PAGE = 2_000_000
"""Most rows of the units of a page: the lengths of as many take 32 MB, which any page may take."""
WITH_LENGTHS = INDEX_SCHEMA.append(LENGTHS)
TEXTS = ("shard", "sha256")
SPARE_ROWS = 16_384
"""Rows of an index of any size: shards that are equal have equal hashes, which compress."""


def write_index(
    directory: Path, entries: Iterable[UnitEntry], *, hidden: bool = False
) -> tuple[FileDigest, ...]:
    """Write the index pages of finished units, or of their hidden states.

    Equal entries give equal bytes.
    """
    pages: list[FileDigest] = []
    for batch in _pages(entries):
        name = f"{INDEX}/{'hidden' if hidden else 'page'}-{len(pages):06d}.parquet"
        table = _table(batch, hidden)
        options = parquet_options(table.schema, dictionary=["shard"])
        with atomic_path(directory / name) as tmp:
            pq.write_table(table, tmp, **options)
        pages.append(FileDigest(path=name, sha256=sha256_file(directory / name)))
    return tuple(pages)


def index_entries(entries: Iterable[UnitEntry], *, hidden: bool = False) -> RowGroups:
    """Return the row groups of finished units, or of their hidden states.

    This is the index of a set that is still being labeled.
    """
    return RowGroups.of(_table(entries, hidden))


def _pages(entries: Iterable[UnitEntry]) -> Iterator[list[UnitEntry]]:
    """Divide units among pages: so many units, and not too many rows, whose lengths are listed."""
    page: list[UnitEntry] = []
    rows = 0
    for entry in entries:
        if page and (len(page) == UNITS_PER_PAGE or rows + entry.rows > ROWS_PER_PAGE):
            yield page
            page, rows = [], 0
        page.append(entry)
        rows += entry.rows
    if page:
        yield page


def _table(entries: Iterable[UnitEntry], hidden: bool) -> pa.Table:
    """Return the rows of the index; with lengths, if an entry has them."""
    rows = [row for entry in entries for row in _rows(entry, hidden)]
    has_lengths = any(row.get("lengths") is not None for row in rows)
    return pa.Table.from_pylist(rows, schema=WITH_LENGTHS if has_lengths else INDEX_SCHEMA)


def _rows(entry: UnitEntry, hidden: bool) -> Iterator[dict[str, object]]:
    part = entry.hidden if hidden else entry
    if part is None:
        return
    ranges = [*enumerate(part.row_groups), (FOOTER_ROW_GROUP, part.footer)]
    for row_group, stretch in ranges:
        row = {
            "unit": entry.unit,
            "shard": hidden_name(entry.unit) if hidden else entry.shard,
            "row_group": row_group,
            **stretch.model_dump(),
        }
        if stretch.lengths is not None:
            is_long = entry.rows > ROWS_PER_PAGE
            lengths = lengths_from_text(stretch.lengths, stretch.rows)
            row["lengths"] = None if is_long else lengths.tolist()
        yield row


def read_index(directory: Path, pages: Iterable[FileDigest], *, hidden: bool = False) -> RowGroups:
    """Read the pages of the index, or of the index of hidden states.

    Raises:
        LabelSetError: a page is missing or altered, or is not one that `write_index` writes.
    """
    tables: list[pa.Table] = []
    found: list[IndexPage] = []
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
            units = np.concatenate([units, _check_page(table, hidden)])
            if len(np.unique(units)) != len(units):
                raise ValueError("a unit occurs twice")
        except (ValueError, pa.ArrowException, OSError) as error:
            raise LabelSetError(
                f"this is not an index page: {first_line(error)}", path=path
            ) from error
        tables.append(table)
        found.append(IndexPage(path=path, sha256=page.sha256, rows=table.num_rows))
    return RowGroups.of(_joined(tables), tuple(found))


def _joined(pages: list[pa.Table]) -> pa.Table:
    """Return the rows of all pages; each column of the pages is let go once it was copied."""
    if not pages:
        return INDEX_SCHEMA.empty_table()
    columns = []
    for name in INDEX_SCHEMA.names:
        column = pa.chunked_array([chunk for page in pages for chunk in page[name].chunks])
        columns.append(column.combine_chunks())
        del column
        pages[:] = [page.drop_columns([name]) for page in pages]
    return pa.table(columns, schema=INDEX_SCHEMA)


def _read_page(path: Path) -> pa.Table:
    with checked_parquet(path, INDEX_SCHEMA.names) as file:
        schema = file.schema_arrow.remove_metadata()
        if not schema.equals(INDEX_SCHEMA) and not schema.equals(WITH_LENGTHS):
            raise ValueError("its columns differ")
        if file.metadata.num_rows > SPARE_ROWS + path.stat().st_size // INDEX_ROW_BYTES:
            raise ValueError(f"{file.metadata.num_rows:,} rows are too many for its size")
        return file.read(INDEX_SCHEMA.names)


def _check_page(table: pa.Table, hidden: bool) -> NDArray[np.int64]:
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
    names = [(hidden_name if hidden else shard_name)(int(unit)) for unit in units]
    if shards.take(as_arrow(footers)).to_pylist() != names or not shards.equals(
        shards.take(as_arrow(np.repeat(footers, sizes)))
    ):
        raise ValueError("a unit has another's shard")
    if not pc.all(pc.match_substring_regex(table["sha256"], "^[0-9a-f]{64}$"), min_count=0).as_py():
        raise ValueError("a value is not a hash")
    return units


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Lengths of the rows of a set, as its index states them.

    Attributes:
        groups: the row groups.
        offsets: int64 [rows of the index + 1], into `values`.
        known: bool [rows of the index], false where the index has no lengths.
        values: int32.
    """

    groups: RowGroups
    offsets: NDArray[np.int64]
    known: NDArray[np.bool_]
    values: NDArray[np.int32]

    def of(self, number: int) -> NDArray[np.int32] | None:
        """Return the lengths of the rows to read of a row group, 0 for rows without labels.

        Returns:
            int32 [rows]; None where the index has none.
        """
        place = self.groups.places[number]
        if not self.known[place]:
            return None
        lengths = self.values[self.offsets[place] : self.offsets[place + 1]]
        if self.groups.kept is None:
            return lengths
        try:
            return lengths[self.groups.kept[number].mask(len(lengths))]
        except ValueError as error:
            raise LabelSetError(first_line(error), path=self.groups[number].shard) from error


def read_lengths(groups: RowGroups) -> RowLengths:
    """Read the lengths of all rows of a set: 4 bytes per row, and no shard.

    Raises:
        LabelSetError: a page is missing or altered, or its lengths do not fit its row groups.
    """
    columns: list[tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int32]]] = []
    first = 0
    for page in groups.pages:
        try:
            data = page.path.read_bytes()
            if sha256_bytes(data) != page.sha256:
                raise ValueError("it was altered since the set was opened")
            with checked_parquet(data, [LENGTHS.name]) as file:
                has_lengths = LENGTHS.name in file.schema_arrow.names
                table = file.read([LENGTHS.name]) if has_lengths else None
            rows = groups.table["rows"].slice(first, page.rows)
            columns.append(_lengths_of(table, as_numpy(rows)))
        except (ValueError, OSError, pa.ArrowException) as error:
            raise LabelSetError(
                f"the lengths of rows cannot be read: {first_line(error)}", path=page.path
            ) from error
        first += page.rows
    if not groups.pages:  # a set that is still being labeled, or an empty one
        has_lengths = LENGTHS.name in groups.table.column_names
        table = groups.table if has_lengths else None
        columns.append(_lengths_of(table, as_numpy(groups.table["rows"])))
    sizes, known, values = (np.concatenate(part) for part in zip(*columns, strict=True))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return RowLengths(groups=groups, offsets=offsets, known=known, values=values)


def _lengths_of(
    table: pa.Table | None, rows: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int32]]:
    """Return (number of lengths, whether there are any, lengths) of the row groups of a page."""
    if table is None:
        nothing = np.zeros(len(rows), bool)
        return nothing.astype(np.int64), nothing, np.empty(0, np.int32)
    column = one_array(table[LENGTHS.name])
    known = column.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.diff(list_offsets(column))
    values: NDArray[np.int32] = as_numpy(column.flatten())
    if len(sizes) != len(rows) or (sizes != np.where(known, rows, 0)).any():
        raise ValueError("there is not one for each row")
    if values.min(initial=0) < 0:
        raise ValueError("a row has a length below 0")
    return sizes, known, values
