"""Rendered rows on disk while the input is planned, so that memory stays constant."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.rendering.render import Sequence
from schemas import SoftshardsError

CACHE_KIB = 2048
TABLES = """
CREATE TABLE rows (row INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE keys (key BLOB PRIMARY KEY, row INTEGER, n_tokens INTEGER, n_labels INTEGER)
    WITHOUT ROWID;
CREATE TABLE rejects (data BLOB);
"""


class Spool:
    """Sequences by key, and rejects, in an SQLite file that no other process uses.

    Rows are written in the order of the input; only the small table of keys is kept sorted.
    """

    def __init__(self, path: Path) -> None:
        # No other process uses the file: no locks (slow on shared file systems), no journal.
        path.unlink(missing_ok=True)
        uri = f"{path.absolute().as_uri()}?nolock=1"
        self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.executescript(TABLES)
        self._db.execute("BEGIN")

    def add(self, key: bytes, sequence: Sequence) -> bool:
        """Store a sequence; return False where its key exists already."""
        cursor = self._db.execute("SELECT 1 FROM keys WHERE key = ?", (key,))
        if cursor.fetchone():
            return False
        data = pickle.dumps(sequence, pickle.HIGHEST_PROTOCOL)
        row = self._db.execute("INSERT INTO rows (data) VALUES (?)", (data,)).lastrowid
        counts = (len(sequence.input_ids), sequence.n_labels)
        self._db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (key, row, *counts))
        return True

    def take(self, key: bytes) -> Sequence | None:
        """Remove and return a sequence, or None where its key is missing."""
        query = "SELECT data FROM keys JOIN rows USING (row) WHERE key = ?"
        found = self._db.execute(query, (key,)).fetchone()
        if found is None:
            return None
        self._db.execute("DELETE FROM keys WHERE key = ?", (key,))
        sequence: Sequence = pickle.loads(found[0])
        return sequence

    def counts(self) -> Iterator[tuple[int, int]]:
        """Yield (tokens, labels) of each sequence, in the order of their keys."""
        yield from self._db.execute("SELECT n_tokens, n_labels FROM keys ORDER BY key")

    def sequences(self) -> Iterator[Sequence]:
        """Yield all sequences, in the order of their keys."""
        query = "SELECT data FROM keys CROSS JOIN rows USING (row) ORDER BY key"
        yield from map(_unpack, self._db.execute(query))

    def add_reject(self, reject: Reject) -> None:
        """Store a reject."""
        data = pickle.dumps(reject, pickle.HIGHEST_PROTOCOL)
        self._db.execute("INSERT INTO rejects VALUES (?)", (data,))

    def rejects(self) -> Iterator[Reject]:
        """Yield all rejects, in the order of the input."""
        yield from map(_unpack, self._db.execute("SELECT data FROM rejects ORDER BY rowid"))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


@contextlib.contextmanager
def open_spool(path: Path) -> Iterator[Spool]:
    """Open a spool in a new file at `path`; delete it at the end.

    Raises:
        SoftshardsError: the disk is full.
    """
    try:
        with contextlib.closing(Spool(path)) as spool:
            yield spool
    except sqlite3.OperationalError as error:
        raise SoftshardsError(
            f"the plan cannot be prepared: {error}",
            path=path,
            hint="free some space; planning needs about five bytes per token of the input",
        ) from error
    finally:
        path.unlink(missing_ok=True)


def _unpack(row: tuple[bytes]) -> Any:
    return pickle.loads(row[0])
