"""Store each verdict on a row as soon as it is given, so that an interrupted run resumes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labeler.console import progress
from labeler.labelsets.common.rows import Mask, Rows
from labeler.labelsets.curate.verdict import Verdict
from labeler.labelsets.curate.verifier import Verifier
from schemas.errors import SoftshardsError

BATCH = 256
"""Rows handed to a verifier at a time."""

VERIFIER_COLUMNS = (
    *("id", "chunk", "sample", "parent_id", "source", "meta", "prompt", "finish_reason"),
    *("n_tokens", "n_labels", "mean_nll", "mean_entropy", "coverage", "answer", "text"),
)
"""Columns of a row that a verifier gets; `meta` parsed from its JSON."""


class VerdictStore:
    """Verdicts by verifier version and row, in an SQLite file.

    Args:
        path: the file; None keeps new verdicts in memory.
        known: the file to read from if `path` is None.
        version: `Verifier.version`.
    """

    def __init__(self, path: Path | None, known: Path, version: str) -> None:
        self._version, self._committed = version, time.monotonic()
        try:
            if path is not None:
                self._db = sqlite3.connect(path)
            else:
                self._db = sqlite3.connect(":memory:")
                if known.is_file():
                    with closing(sqlite3.connect(known)) as there:
                        there.backup(self._db)
            self._db.execute(
                "create table if not exists verdicts (version text, row text, "
                "number real, passed integer, fault text, primary key (version, row))"
            )
        except sqlite3.Error as error:
            raise SoftshardsError(
                f"the stored verdicts cannot be used: {error}",
                path=path or known,
                hint="check the permissions, or delete the file: rows are verified again then",
            ) from error

    def get(self, key: str) -> Verdict | None:
        """Return the stored verdict on a row."""
        found = self._db.execute(
            "select number, passed, fault from verdicts where version = ? and row = ?",
            (self._version, key),
        ).fetchone()
        return None if found is None else Verdict(found[0], bool(found[1]), found[2])

    def put(self, key: str, verdict: Verdict) -> None:
        """Store a verdict; it is on disk for good at most a second later."""
        values = (self._version, key, verdict.number, verdict.passed, verdict.fault)
        self._db.execute("insert or replace into verdicts values (?, ?, ?, ?, ?)", values)
        if time.monotonic() > self._committed + 1:
            self._db.commit()
            self._committed = time.monotonic()

    def close(self) -> None:
        """Commit all verdicts, and close the file."""
        self._db.commit()
        self._db.close()


def verify_rows(
    rows: Rows, candidates: Mask, verifier: Verifier, store: VerdictStore
) -> tuple[NDArray[np.float64], dict[int, Verdict]]:
    """Verify each candidate that has no stored verdict.

    Returns:
        The verifier's numbers, float64 [rows], NaN where it gave none; and the verdicts by row.

    Raises:
        SoftshardsError: the verifier cannot be run at all.
    """
    numbers = np.full(rows.labels.rows, np.nan)
    verdicts: dict[int, Verdict] = {}
    with verifier.running() as verify, progress("rows") as bar:
        task = bar.add_task("verifying", total=int(candidates.sum()))
        for batch in _batches(rows, candidates):
            keys = {row: _key(given) for row, given in batch.items()}
            found = {row: v for row, key in keys.items() if (v := store.get(key)) is not None}
            new = [row for row in batch if row not in found]
            verdicts |= found
            bar.advance(task, len(found))
            for row, verdict in zip(new, verify([batch[row] for row in new]), strict=True):
                store.put(keys[row], verdict)
                verdicts[row] = verdict
                bar.advance(task)
    for row, verdict in verdicts.items():
        if verdict.number is not None:
            numbers[row] = verdict.number
    return numbers, verdicts


def _batches(rows: Rows, candidates: Mask) -> Iterator[dict[int, dict[str, object]]]:
    """Yield some rows at a time, as a verifier gets them, by their numbers in the set."""
    for first, frame in rows.frames(VERIFIER_COLUMNS, only=candidates):
        numbers = _numbers(candidates, first, frame)
        for at in range(0, frame.height, BATCH):
            some = frame[at : at + BATCH].to_dicts()
            yield {numbers[at + i]: _with_meta(row) for i, row in enumerate(some)}


def _numbers(candidates: Mask, first: int, frame: pl.DataFrame) -> list[int]:
    """Return the row numbers of a frame that holds only the candidates of a row group."""
    numbers: list[int] = (first + np.flatnonzero(candidates[first:])[: frame.height]).tolist()
    return numbers


def _with_meta(row: dict[str, Any]) -> dict[str, object]:
    return row | {"meta": json.loads(row["meta"]) if row["meta"] else {}}


def _key(given: dict[str, object]) -> str:
    """Return the digest of a row's key and content."""
    return sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
