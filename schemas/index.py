"""`index/`: the byte ranges of the journal in Parquet pages, written when a set is finalized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import INDEX_SCHEMA, parquet_options, read_parquet
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_file
from schemas.journal import ByteRange, UnitEntry
from schemas.manifest import FileDigest

INDEX = "index"
FOOTER_ROW_GROUP = -1
UNITS_PER_PAGE = 4096


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


def read_index(
    directory: Path, pages: Iterable[FileDigest]
) -> dict[str, tuple[list[ByteRange], ByteRange]]:
    """Read index pages.

    Returns:
        By shard path, the byte ranges of its row groups in order, and of its footer.

    Raises:
        LabelSetError: a page is missing or altered.
    """
    shards: dict[str, tuple[list[ByteRange], ByteRange]] = {}
    for page in pages:
        path = directory / page.path
        if not path.is_file() or sha256_file(path) != page.sha256:
            state = "altered" if path.is_file() else "missing"
            raise LabelSetError(
                f"an index page is {state}",
                path=path,
                hint="run the same `labeler label` command: it rebuilds the index from the journal",
            )
        groups: list[ByteRange] = []
        for row in read_parquet(path).to_pylist():
            fields = {name: row[name] for name in ByteRange.model_fields}
            if row["row_group"] == FOOTER_ROW_GROUP:
                shards[row["shard"]] = (groups, ByteRange(**fields))
                groups = []
            else:
                groups.append(ByteRange(**fields))
    return shards
