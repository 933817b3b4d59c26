"""Tokens per row: the journal and the index keep them, so that planning packs reads no shard."""

from __future__ import annotations

import base64

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow_alloc import as_numpy

LENGTH_COLUMNS = ("n_tokens", "n_labels", "student_input_ids")
"""Columns that the lengths of rows are counted from."""


def count_lengths(table: pa.Table) -> NDArray[np.int32]:
    """Return the tokens that a student sees of each row [rows]; 0 for rows without labels.

    Args:
        table: rows with the columns `LENGTH_COLUMNS`.
    """
    student = pc.list_value_length(table["student_input_ids"]).cast(pa.int32())
    seen = as_numpy(pc.coalesce(student, table["n_tokens"]))
    return np.where(as_numpy(table["n_labels"]) > 0, seen, 0).astype(np.int32)


def lengths_to_text(lengths: NDArray[np.int32]) -> str:
    """Encode lengths for a journal entry: base64 of little-endian int32."""
    return base64.b64encode(lengths.astype("<i4").tobytes()).decode()


def lengths_from_text(text: str, rows: int) -> NDArray[np.int32]:
    """Decode `lengths_to_text`.

    Raises:
        ValueError: it is not the lengths of so many rows.
    """
    data = base64.b64decode(text, validate=True)
    lengths = np.frombuffer(data, "<i4") if len(data) % 4 == 0 else np.empty(0, np.int32)
    if len(data) != 4 * rows or lengths.min(initial=0) < 0:
        raise ValueError(f"these are not the lengths of {rows} rows")
    return lengths.astype(np.int32)
