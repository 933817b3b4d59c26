"""The plan: the deterministic cut of the input into work units.

Each planned row is already rendered to token ids. A resumed run therefore needs neither the corpus
nor the tokenizer, and a corpus that changed in the meantime cannot affect it. The plan takes about
two bytes per token, one percent of the size of the labels.

The manifest names the plan's file: `plan.parquet`, then `plan-0001.parquet` and so on after each
append. Old row groups keep their place, so a unit has the same number in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import ASKED, PLAN_SCHEMA, parquet_options
from schemas.atomic import atomic_path
from schemas.errors import LabelSetError, first_line
from schemas.file_names import is_plan
from schemas.fingerprint import sha256_file
from schemas.manifest import FileDigest
from schemas.parquet_sizes import checked_parquet
from schemas.set_paths import set_file

PLAN = "plan.parquet"


def write_plan(directory: Path, units: Iterable[pa.Table], name: str = PLAN) -> FileDigest:
    """Write a plan, one row group per unit; only one unit is in memory at a time."""
    rest = iter(units)
    first = next(rest, PLAN_SCHEMA.empty_table())
    options = parquet_options(first.schema, dictionary=["source", "parent_id"])
    with (
        atomic_path(directory / name) as tmp,
        pq.ParquetWriter(tmp, first.schema, **options) as writer,
    ):
        for unit in chain([first] if first.num_rows else [], rest):
            writer.write_table(unit, row_group_size=max(1, unit.num_rows))
    return FileDigest(path=name, sha256=sha256_file(directory / name))


def open_plan(directory: Path, expected: FileDigest | None) -> pq.ParquetFile:
    """Open a plan to read it unit by unit (row group i is unit i).

    Raises:
        LabelSetError: the plan is missing, altered or not a plan, or the set has none.
    """
    if expected is None:
        raise LabelSetError("a derived set has no plan", path=directory)
    path = set_file(directory, expected.path)
    if not path.is_file() or sha256_file(path) != expected.sha256:
        raise LabelSetError(
            f"the plan is {'altered' if path.is_file() else 'missing'}",
            path=path,
            hint="restore the file from a copy, or label into a new folder",
        )
    try:
        with checked_parquet(path) as file:
            if file.schema_arrow.remove_metadata() not in (PLAN_SCHEMA, PLAN_SCHEMA.append(ASKED)):
                raise ValueError("its columns differ")
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (ValueError, pa.ArrowException, OSError) as error:
        raise LabelSetError(f"this is not a plan: {first_line(error)}", path=path) from error


def read_unit(plan: pq.ParquetFile, unit: int) -> pa.Table:
    """Return the planned rows of one unit."""
    return plan.read_row_group(unit)


def read_units(plan: pq.ParquetFile) -> Iterator[pa.Table]:
    """Iterate over the planned rows, one unit at a time."""
    return (plan.read_row_group(unit) for unit in range(plan.num_row_groups))


def next_plan(current: str) -> str:
    """Return the name of the next plan: `plan.parquet` -> `plan-0001.parquet` -> ..."""
    number = int(current.removesuffix(".parquet").removeprefix("plan").lstrip("-") or 0)
    return f"plan-{number + 1:04d}.parquet"


def remove_other_plans(directory: Path, current: str) -> None:
    """Delete plans that the manifest does not name, the remains of a killed append."""
    for path in list(directory.iterdir()):
        if is_plan(path.name) and path.name != current:
            path.unlink()
