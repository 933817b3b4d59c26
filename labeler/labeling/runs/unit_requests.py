"""Planned rows to engine requests, and failed requests to rejects."""

from __future__ import annotations

import hashlib

from labeler.labeling.engines.engine import Failed, Request
from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.planning.planned_row import PlannedRow
from labeler.labeling.rendering.spans import Span
from schemas import SoftshardsError


def unit_requests(rows: list[PlannedRow], *, seed: int, samples: int) -> list[Request]:
    """Return a request for each sample of each row of a unit."""
    return [
        Request(
            index=index,
            sample=sample,
            input_ids=row["input_ids"],
            spans=tuple(Span(**span) for span in row["spans"]),
            seed=_row_seed(seed, row["id"], row["chunk"], sample),
            asked=row.get("asked_ids"),
        )
        for index, row in enumerate(rows)
        for sample in range(samples)
    ]


def _row_seed(seed: int, id_: str, chunk: int, sample: int) -> int:
    """Return the seed of a row: the same in any order and on any machine."""
    digest = hashlib.sha256(f"{seed}\0{id_}\0{chunk}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def as_reject(failed: Failed, rows: list[PlannedRow], *, strict: bool) -> Reject:
    """Return the reject for a failed request.

    Raises:
        SoftshardsError: `strict` is set.
    """
    row = rows[failed.request.index]
    if strict:
        raise SoftshardsError(failed.reason, path=row["source"], row=row["id"])
    return Reject(
        id=row["id"],
        chunk=row["chunk"],
        sample=failed.request.sample,
        source=row["source"],
        reason=failed.reason,
    )
