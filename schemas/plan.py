"""`plan.parquet`: the deterministic cut of the input into work units.

Each planned row is already rendered to token ids, so a resumed run needs neither the corpus nor
the tokenizer again, and cannot be led astray by a corpus that changed meanwhile. It costs about
two bytes a token, some one per cent of what the labels take.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import PLAN_SCHEMA, parquet_options
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_file
from schemas.manifest import FileDigest

PLAN = "plan.parquet"


def write_plan(directory: Path, units: list[pa.Table]) -> FileDigest:
    """Write a plan, one row group a unit."""
    options = parquet_options(PLAN_SCHEMA, dictionary=["source", "parent_id"])
    with (
        atomic_path(directory / PLAN) as tmp,
        pq.ParquetWriter(tmp, PLAN_SCHEMA, **options) as writer,
    ):
        for unit in units:
            writer.write_table(unit, row_group_size=max(1, unit.num_rows))
    return FileDigest(path=PLAN, sha256=sha256_file(directory / PLAN))


def open_plan(directory: Path, expected: FileDigest) -> pq.ParquetFile:
    """Open a plan for reading unit by unit (row group i is unit i).

    Raises:
        LabelSetError: it is missing or altered.
    """
    path = directory / PLAN
    if not path.is_file() or sha256_file(path) != expected.sha256:
        raise LabelSetError(
            f"the plan is {'altered' if path.is_file() else 'missing'}",
            path=path,
            mend="restore the file from a copy, or label into a new folder",
        )
    return pq.ParquetFile(path, page_checksum_verification=True)


def read_unit(plan: pq.ParquetFile, unit: int) -> pa.Table:
    """The planned rows of one unit."""
    return plan.read_row_group(unit)
