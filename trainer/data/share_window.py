"""Rows of a window that several processes read: who holds which, and what they send each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow_alloc import as_numpy
from schemas.arrow_lists import one_array
from trainer.data.table_bytes import Message, from_bytes, pick_rows, to_bytes
from trainer.data.window import coalesce

if TYPE_CHECKING:
    from trainer.data.exchange import Exchange

SIZES = pa.schema({"group": pa.int32(), "tokens": pa.int32(), "labels": pa.int32()})
"""What processes tell each other of rows: their sizes, and the row group's number in the window."""


@dataclass(frozen=True, kw_only=True)
class OwnRows:
    """The rows that this process read; `table` is None if it read none. `sizes`: see `SIZES`."""

    table: pa.Table | None
    sizes: pa.Table


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """All rows of a window, int64 [rows], in the order of its row groups.

    Attributes:
        tokens, labels: their sizes.
        holders: the process that read each.
        numbers: the number of each among the rows of its holder.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    holders: NDArray[np.int64]
    numbers: NDArray[np.int64]


def divide_reading(sizes: Sequence[int], so_far: NDArray[np.int64]) -> list[int]:
    """Return the process that reads each row group of a window, and add to what each has read.

    The largest goes first, to the process that has read least (Graham, "Bounds on Multiprocessing
    Timing Anomalies", 1969). So none ever reads more than its share of all bytes and one row group.

    Args:
        sizes: bytes of each row group.
        so_far: int64 [processes], the bytes that each was given; changed in place.
    """
    readers = [0] * len(sizes)
    for group in np.argsort(-np.asarray(sizes), kind="stable"):
        readers[group] = int(so_far.argmin())
        so_far[readers[group]] += sizes[group]
    return readers


def own_rows(groups: Sequence[int], tables: Sequence[pa.Table]) -> OwnRows:
    """Return the rows of the row groups that this process read, each with its number."""
    columns: list[list[NDArray[np.int64]]] = [[np.empty(0, np.int64)] for _ in SIZES.names]
    for group, table in zip(groups, tables, strict=True):
        tokens = as_numpy(pc.list_value_length(coalesce(table, "student_input_ids", "input_ids")))
        labels = as_numpy(one_array(table["n_labels"]))
        for column, values in zip(columns, (np.full(len(tokens), group), tokens, labels)):
            column.append(values)
    sizes = [pa.array(np.concatenate(column), pa.int32()) for column in columns]
    return OwnRows(
        table=pa.concat_tables(tables).combine_chunks() if tables else None,
        sizes=pa.table(sizes, schema=SIZES),
    )


def shared_rows(told: Sequence[memoryview]) -> SharedRows:
    """Return all rows of a window from the `OwnRows.sizes` of each process, as bytes."""
    tables = [from_bytes(data) for data in told]
    counts = [table.num_rows for table in tables]
    group, tokens, labels = (
        as_numpy(one_array(column)).astype(np.int64) for column in pa.concat_tables(tables).columns
    )
    order = np.argsort(group, kind="stable")  # a row group is read by one process
    return SharedRows(
        tokens=tokens[order],
        labels=labels[order],
        holders=np.repeat(np.arange(len(counts)), counts)[order],
        numbers=np.concatenate([np.arange(count) for count in counts])[order],
    )


def share_lists(
    exchange: Exchange, groups: list[int], read: Callable[[list[int]], list[NDArray[np.int32]]]
) -> list[NDArray[np.int32]]:
    """Return an array for each row group, of which each process reads some.

    Args:
        exchange: the processes.
        groups: numbers of row groups.
        read: returns the arrays of some of them.
    """
    world = exchange.world

    def message(own: list[NDArray[np.int32]]) -> list[Message]:
        return [to_bytes(pa.table({"list": pa.array(own, pa.list_(pa.int32()))}))] * world

    _, told = exchange.together(lambda: read(groups[exchange.rank :: world]), message)
    shares = [from_bytes(data)["list"] for data in told]
    return [
        np.asarray(shares[number % world][number // world].values, np.int32)
        for number in range(len(groups))
    ]


def row_messages(
    own: OwnRows, shared: SharedRows, wanted: Sequence[NDArray[np.int64]], rank: int
) -> list[Message]:
    """Return, for each process, those of its rows that this one holds; nothing for itself.

    Args:
        own: the rows of this process.
        shared: all rows.
        wanted: the rows of the window that each process trains on.
        rank: number of this process.
    """
    messages: list[Message] = []
    for receiver, rows in enumerate(wanted):
        numbers = shared.numbers[rows[shared.holders[rows] == rank]]
        is_sent = own.table is not None and len(numbers) and receiver != rank
        messages.append(to_bytes(pick_rows(own.table, numbers)) if is_sent else b"")
    return messages


def join_rows(
    own: OwnRows,
    shared: SharedRows,
    wanted: NDArray[np.int64],
    found: Sequence[memoryview],
    rank: int,
) -> tuple[pa.Table | None, NDArray[np.int64]]:
    """Return the rows that this process trains on, from itself and from the messages of others.

    Args:
        own, shared, rank: as of `row_messages`.
        wanted: the rows of the window that this process trains on.
        found: the `row_messages` of each process for this one.

    Returns:
        The rows, or None if there are none; and the number in them of each row of the window,
        int64 [rows], -1 for the others.

    Raises:
        SoftshardsError: a message was damaged.
    """
    tables = []
    places = np.full(len(shared.tokens), -1, np.int64)
    start = 0
    for holder, message in enumerate(found):
        rows = wanted[shared.holders[wanted] == holder]
        if not len(rows):
            continue
        if holder == rank:
            tables.append(pick_rows(own.table, shared.numbers[rows]))
        else:
            tables.append(from_bytes(message, len(rows)))
        places[rows] = np.arange(start, start + len(rows))
        start += len(rows)
    return pa.concat_tables(tables) if tables else None, places
