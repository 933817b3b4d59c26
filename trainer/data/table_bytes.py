"""Rows as bytes on their way to another process: an Arrow IPC stream and its checksum."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import SoftshardsError, first_line

Message = bytes | pa.Buffer
"""What a process sends to another."""
CHECKSUM_BYTES = 4


def to_bytes(table: pa.Table) -> pa.Buffer:
    """Return a table as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    checked = pa.BufferOutputStream()
    checked.write(stream)
    checked.write(zlib.crc32(stream).to_bytes(CHECKSUM_BYTES, "little"))
    return checked.getvalue()


def from_bytes(data: memoryview, rows: int | None = None) -> pa.Table:
    """Return the table of `to_bytes`, without a copy of its columns.

    Args:
        data: the bytes.
        rows: number of the rows that it must have, where it is known.

    Raises:
        SoftshardsError: the bytes were damaged on their way, or hold something else.
    """
    stream, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    try:
        if zlib.crc32(stream) != int.from_bytes(checksum, "little"):
            raise ValueError("the checksum differs")
        table = pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
        table.validate(full=True)
        if rows not in (None, table.num_rows):
            raise ValueError(f"{table.num_rows} rows, not {rows}")
    except (ValueError, pa.ArrowException) as error:
        raise SoftshardsError(
            f"rows from another process arrived damaged: {first_line(error)}",
            hint="check the network between the machines; the same command resumes from the last "
            "checkpoint",
        ) from error
    return table


def pick_rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table, as `table.take` does in three to seven times the time.

    Args:
        table: the table.
        rows: int64 [n], n > 0; rows that follow each other are copied together.
    """
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = [(int(run[0]), len(run)) for run in np.split(rows, cuts)]
    return pa.concat_tables([table.slice(start, n) for start, n in runs]).combine_chunks()
