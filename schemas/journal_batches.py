"""`journal/units-000000.parquet`: the entries and rejects of 256 finished units in one file.

A large set would otherwise have two small files per unit, each a request in an object store. An
entry in a file of its own replaces the one in the batch: so a process killed between writing a
batch and deleting the files that it merges does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import parquet_options
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError, first_line
from schemas.file_names import BATCH, batch_name
from schemas.parquet_sizes import read_parquet
from schemas.set_paths import set_file

BATCH_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("entry", pa.binary(), nullable=False),
        pa.field("rejects", pa.binary(), nullable=False),
    ]
)
BATCHES_KEPT = 4
"""Batches that stay in memory, for callers that ask for one unit after the other."""


class UnitFiles(NamedTuple):
    """The bytes of a unit's two files in the journal, as they were before they were merged."""

    entry: bytes
    rejects: bytes


def batch_path(directory: Path, unit: int) -> Path:
    """Return the path of the batch that a unit belongs to, which need not exist."""
    return directory / batch_name(unit)


def read_batch(directory: Path, unit: int) -> Mapping[int, UnitFiles]:
    """Return the units in the batch that a unit belongs to; none where there is no such file.

    Raises:
        LabelSetError: it cannot be read, or holds units of another batch.
    """
    path = set_file(directory, batch_name(unit))
    try:
        facts = path.stat()
    except FileNotFoundError:
        return {}
    return _read(path, unit // BATCH, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def write_batch(directory: Path, files: Mapping[int, UnitFiles]) -> None:
    """Write units of one batch, atomically, over an older file; delete it if there are none."""
    path = batch_path(directory, min(files))
    columns = [
        pa.array(sorted(files), BATCH_SCHEMA.field("unit").type),
        *(
            pa.array([getattr(files[unit], name) for unit in sorted(files)], pa.binary())
            for name in ("entry", "rejects")
        ),
    ]
    table = pa.Table.from_arrays(columns, schema=BATCH_SCHEMA)
    options = parquet_options(BATCH_SCHEMA, dictionary=[])
    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, BATCH_SCHEMA, **options) as writer:
        writer.write_table(table)


def drop_from_batch(directory: Path, unit: int) -> None:
    """Take a unit out of its batch, if it is in it."""
    files = read_batch(directory, unit)
    if unit in files:
        rest = {number: content for number, content in files.items() if number != unit}
        if rest:
            write_batch(directory, rest)
        else:
            batch_path(directory, unit).unlink()


@lru_cache(maxsize=BATCHES_KEPT)
def _read(path: Path, batch: int, *_stamp: int) -> Mapping[int, UnitFiles]:
    hint = "`labeler repair` writes the entries again, from the index or the shards"
    try:
        table = read_parquet(path)
        if not table.schema.remove_metadata().equals(BATCH_SCHEMA):
            raise ValueError("its columns differ")
        rows = zip(*(table[name].to_pylist() for name in BATCH_SCHEMA.names), strict=True)
        files = {unit: UnitFiles(entry, rejects) for unit, entry, rejects in rows}
        if any(unit // BATCH != batch for unit in files):
            raise ValueError("it has units of another batch")
    except (ValueError, OSError, pa.ArrowException) as error:
        what = f"the journal's batch cannot be read: {first_line(error)}"
        raise LabelSetError(what, path=path, hint=hint) from error
    return files
