"""The plan of a label set, or the rejects of a unit, from what is left: rows are in both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import Identity
from schemas.arrow import PLAN_SCHEMA
from schemas.journal import UnitEntry
from schemas.plan import read_unit

COLUMNS = [name for name in PLAN_SCHEMA.names if name != "unit"]
LOST = "it could not be labeled; the record of why was lost"


def planned_units(
    out: Path, entries: dict[int, UnitEntry], identity: Identity
) -> Iterator[pa.Table]:
    """The plan's table of each unit, made from its shard; rejected rows are not in it."""
    sampling = identity.sampling
    for unit in sorted(entries):
        rows = pq.read_table(out / entries[unit].shard, columns=[*COLUMNS, "sample"]).to_pylist()
        planned: dict[tuple[str, int], dict[str, Any]] = {}
        for row in rows:
            del row["sample"]  # all samples of a row have one prompt
            if sampling is not None:
                row |= _prompt(row) | {"n_labels": sampling.max_tokens * sampling.n}
            planned.setdefault((row["id"], row["chunk"]), row | {"unit": unit})
        yield pa.Table.from_pylist(list(planned.values()), schema=PLAN_SCHEMA)


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row as they were before it was answered."""
    found: dict[str, Any] = {"spans": []}
    found["input_ids"] = row["input_ids"][: row["spans"][0]["start"]]
    found["n_tokens"] = len(found["input_ids"])
    if row["student_spans"]:
        found["student_input_ids"] = row["student_input_ids"][: row["student_spans"][0]["start"]]
        found["student_spans"] = []
    return found


def lost_rejects(
    out: Path, entry: UnitEntry, plan: pq.ParquetFile, identity: Identity
) -> list[dict[str, Any]]:
    """Rows that the plan has in a unit and its shard has not, as rejects without a reason."""
    samples = 1 if identity.sampling is None else identity.sampling.n
    keys = pq.read_table(out / entry.shard, columns=["id", "chunk", "sample"]).to_pylist()
    there = {tuple(key.values()) for key in keys}
    return [
        {"id": row["id"], "chunk": row["chunk"], "sample": sample}
        | {"source": row["source"], "reason": LOST}
        for row in read_unit(plan, entry.unit).to_pylist()
        for sample in range(samples)
        if (row["id"], row["chunk"], sample) not in there
    ]
