"""`index/`: the byte ranges of the journal in Parquet pages, written when a set is finalized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import INDEX_SCHEMA, parquet_options
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError, first_line
from schemas.file_names import INDEX, shard_name
from schemas.fingerprint import sha256_file
from schemas.journal import ByteRange, UnitEntry, require_tiling
from schemas.manifest import FileDigest
from schemas.parquet_sizes import checked_parquet
from schemas.set_paths import set_file
from schemas.size_limits import INDEX_ROW_BYTES

FOOTER_ROW_GROUP = -1
UNITS_PER_PAGE = 4096
SPARE_ROWS = 16_384
"""Rows of an index of any size: shards that are equal have equal hashes, which compress."""


def write_index(directory: Path, entries: Iterable[UnitEntry]) -> tuple[FileDigest, ...]:
    """Write the index pages of finished units; equal entries give equal bytes."""
    pages: list[FileDigest] = []
    rest = iter(entries)
    while batch := list(islice(rest, UNITS_PER_PAGE)):
        name = f"{INDEX}/page-{len(pages):06d}.parquet"
        rows = [row for entry in batch for row in _rows(entry)]
        table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
        options = parquet_options(INDEX_SCHEMA, dictionary=["shard"])
        with atomic_path(directory / name) as tmp:
            pq.write_table(table, tmp, **options)
        pages.append(FileDigest(path=name, sha256=sha256_file(directory / name)))
    return tuple(pages)


def _rows(entry: UnitEntry) -> Iterator[dict[str, object]]:
    ranges = [*enumerate(entry.row_groups), (FOOTER_ROW_GROUP, entry.footer)]
    for row_group, stretch in ranges:
        yield {
            "unit": entry.unit,
            "shard": entry.shard,
            "row_group": row_group,
            **stretch.model_dump(),
        }


Ranges = tuple[list[ByteRange], ByteRange]
"""Byte ranges of a shard: its row groups in order, and its footer."""


def read_index(directory: Path, pages: Iterable[FileDigest]) -> dict[str, Ranges]:
    """Read index pages.

    Returns:
        By shard path, the byte ranges of its row groups in order, and of its footer.

    Raises:
        LabelSetError: a page is missing or altered, or is not one that `write_index` writes.
    """
    shards: dict[str, Ranges] = {}
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
            _add_page(table, shards)
        except (ValueError, pa.ArrowException, OSError) as error:
            raise LabelSetError(
                f"this is not an index page: {first_line(error)}", path=path
            ) from error
    return shards


def _read_page(path: Path) -> pa.Table:
    with checked_parquet(path) as file:
        if not file.schema_arrow.remove_metadata().equals(INDEX_SCHEMA):
            raise ValueError("its columns differ")
        if file.metadata.num_rows > SPARE_ROWS + path.stat().st_size // INDEX_ROW_BYTES:
            raise ValueError(f"{file.metadata.num_rows:,} rows are too many for its size")
        return file.read()


def _add_page(table: pa.Table, shards: dict[str, Ranges]) -> None:
    """Add the shards of a page; a page holds the rows of a shard together, its footer last."""
    groups: list[ByteRange] = []
    for row in table.to_pylist():
        unit = row.pop("unit")
        shard, number = row.pop("shard"), row.pop("row_group")
        part = ByteRange(**row)
        if unit < 0 or shard != shard_name(unit) or shard in shards:
            raise ValueError(f"unit {unit} stands for {shard!r}, or occurs twice")
        if number == FOOTER_ROW_GROUP:
            require_tiling(groups, part)
            shards[shard] = (groups, part)
            groups = []
        elif number == len(groups):
            groups.append(part)
        else:
            raise ValueError(f"row group {number} of {shard} is out of order")
    if groups:
        raise ValueError("the last shard has no footer")
