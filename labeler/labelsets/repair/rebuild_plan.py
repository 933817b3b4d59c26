"""Rebuild a set's plan, or a unit's rejects, from the rows that plan and shards share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import Identity, SoftshardsError
from schemas.arrow import KEY_COLUMNS, PLAN_SCHEMA
from schemas.journal import UnitEntry
from schemas.parquet_sizes import read_parquet
from schemas.plan import read_unit

COLUMNS = [name for name in PLAN_SCHEMA.names if name != "unit"]
LOST = "not labeled; the reason is lost"


def rebuild_units(
    out: Path, entries: dict[int, UnitEntry], identity: Identity
) -> Iterator[pa.Table]:
    """Yield the plan's table of each unit, from its shard. Rejected rows are missing."""
    sampling = identity.sampling
    for unit in sorted(entries):
        rows = read_parquet(out / entries[unit].shard, [*COLUMNS, "sample"]).to_pylist()
        planned: dict[tuple[str, int], dict[str, Any]] = {}
        for row in rows:
            del row["sample"]  # all samples of a row share a prompt
            if sampling is not None:
                row |= _prompt_columns(row) | {"n_labels": sampling.max_tokens * sampling.n}
            planned.setdefault((row["id"], row["chunk"]), row | {"unit": unit})
        yield pa.Table.from_pylist(list(planned.values()), schema=PLAN_SCHEMA)


def _prompt_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a generated row as they were before its answer."""
    if not row["spans"] or bool(row["student_spans"]) != bool(row["student_input_ids"]):
        raise SoftshardsError("the row has no answer: it was not generated", row=row["id"])
    found: dict[str, Any] = {"spans": []}
    found["input_ids"] = row["input_ids"][: row["spans"][0]["start"]]
    found["n_tokens"] = len(found["input_ids"])
    if row["student_spans"]:
        found["student_input_ids"] = row["student_input_ids"][: row["student_spans"][0]["start"]]
        found["student_spans"] = []
    return found


def rebuild_rejects(
    out: Path, entry: UnitEntry, plan: pq.ParquetFile, identity: Identity
) -> list[dict[str, Any]]:
    """Return a unit's planned rows that its shard does not have, as rejects without a reason."""
    samples = 1 if identity.sampling is None else identity.sampling.n
    keys = read_parquet(out / entry.shard, list(KEY_COLUMNS)).to_pylist()
    labeled = {tuple(key.values()) for key in keys}
    return [
        {"id": row["id"], "chunk": row["chunk"], "sample": sample}
        | {"source": row["source"], "reason": LOST}
        for row in read_unit(plan, entry.unit).to_pylist()
        for sample in range(samples)
        if (row["id"], row["chunk"], sample) not in labeled
    ]
