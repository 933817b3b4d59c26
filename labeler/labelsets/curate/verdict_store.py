"""Verdicts on rows, stored as they are given, so that an interrupted run goes on."""

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
from labeler.labelsets.curate.verifier import Verdict, Verifier
from schemas import SoftshardsError

AHEAD = 256
"""Rows handed over to a verifier at a time."""

SEEN = (
    *("id", "chunk", "sample", "parent_id", "source", "meta", "prompt", "finish_reason"),
    *("n_tokens", "n_labels", "mean_nll", "mean_entropy", "coverage", "answer", "text"),
)
"""What a verifier is given of a row; `meta` as what its JSON says."""


class Store:
    """Verdicts by what was run and what it was given, in an SQLite file.

    Args:
        path: the file; None keeps them in memory, after those of `known`.
        known: a file to start from where `path` is None.
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
                hint="check that you may write there; or delete the file: rows are verified again",
            ) from error

    def get(self, key: str) -> Verdict | None:
        """The verdict on a row that was given before."""
        found = self._db.execute(
            "select number, passed, fault from verdicts where version = ? and row = ?",
            (self._version, key),
        ).fetchone()
        return None if found is None else Verdict(found[0], bool(found[1]), found[2])

    def put(self, key: str, verdict: Verdict) -> None:
        """Store a verdict; a second later at most it is on disk for good."""
        values = (self._version, key, verdict.number, verdict.passed, verdict.fault)
        self._db.execute("insert or replace into verdicts values (?, ?, ?, ?, ?)", values)
        if time.monotonic() > self._committed + 1:
            self._db.commit()
            self._committed = time.monotonic()

    def close(self) -> None:
        """Put what is stored on disk, and close the file."""
        self._db.commit()
        self._db.close()


def verify_rows(
    rows: Rows, candidates: Mask, verifier: Verifier, store: Store
) -> tuple[NDArray[np.float64], dict[int, Verdict]]:
    """Have each candidate verified that was not before.

    Returns:
        The verifier's numbers, float64 [rows], NaN where there is none; and the verdicts.

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


def _batches(rows: Rows, candidates: Mask) -> Iterator[dict[int, dict[str, Any]]]:
    """Some rows at a time, by their numbers in the set, as a verifier is to see them."""
    for first, frame in rows.frames(SEEN, only=candidates):
        numbers = _numbers(candidates, first, frame)
        for at in range(0, frame.height, AHEAD):
            some = frame[at : at + AHEAD].to_dicts()
            yield {numbers[at + i]: _seen(row) for i, row in enumerate(some)}


def _numbers(candidates: Mask, first: int, frame: pl.DataFrame) -> list[int]:
    """The numbers of the rows of a frame that has the candidates of a row group alone."""
    return (first + np.flatnonzero(candidates[first:])[: frame.height]).tolist()


def _seen(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"meta": json.loads(row["meta"]) if row["meta"] else {}}


def _key(given: dict[str, Any]) -> str:
    """Key and content of a row in one digest."""
    return sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
