"""Read a label set as a student saw it: tokens and labeled spans, one row group at a time."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas import LabelSet, LabelSetError
from schemas.arrow import KEY_COLUMNS
from schemas.arrow_lists import list_offsets
from trainer.audit.audit_results import RowKey
from trainer.data.window import coalesce, drop_unlabeled, row_names

COLUMNS = (*KEY_COLUMNS, "n_labels", "input_ids", "spans", "student_input_ids", "student_spans")

Ids = NDArray[np.int32]
Span = tuple[int, int, str]
"""Start, stop and kind of labeled tokens."""


@dataclass(frozen=True)
class TrainingRow:
    """A row in the student's context."""

    key: RowKey
    ids: Ids
    spans: tuple[Span, ...]

    def starts(self, prefix: int, continuation: int) -> list[int]:
        """Return the positions with a whole prefix before and labeled tokens enough after them."""
        ranges = (range(max(a, prefix), b - continuation + 1) for a, b, _ in self.spans)
        return [start for one in ranges for start in one]


@dataclass(frozen=True)
class TrainingGroup:
    """The labeled rows of a row group."""

    table: pa.Table
    ids: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ids_of(self, row: int) -> Ids:
        """Return the token ids of a row."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def row(self, number: int) -> TrainingRow:
        """Return a row, as a copy."""
        record = self.table.slice(number, 1)
        ids = self.ids_of(number).copy()
        spans = coalesce(record, "student_spans", "spans").to_pylist()[0]
        limited = ((s["start"], min(s["stop"], len(ids)), s["kind"]) for s in spans)
        return TrainingRow(RowKey(**record.select(KEY_COLUMNS).to_pylist()[0]), ids, tuple(limited))

    def has_room(self, prefix: int, continuation: int) -> NDArray[np.bool_]:
        """Return bool [rows]: the rows for which `TrainingRow.starts` returns a position."""
        spans = coalesce(self.table, "student_spans", "spans")
        flat, of_row = (
            spans.flatten(),
            np.repeat(np.arange(len(self)), np.diff(list_offsets(spans))),
        )
        start, stop = (flat.field(name).to_numpy().astype(np.int64) for name in ("start", "stop"))
        stop = np.minimum(stop, np.diff(self.offsets)[of_row])
        fits = stop - np.maximum(start, prefix) >= continuation
        return np.bincount(of_row[fits], minlength=len(self)) > 0


def read_groups(labels: LabelSet) -> Iterator[TrainingGroup]:
    """Yield the labeled rows of each row group; the checksums of the pages are verified.

    Where labels were left out (`Identity.keep_positions`), a row has one span: from its first
    label, which is always kept, to its end.

    Raises:
        LabelSetError: a shard is altered, or has an id outside the vocabulary.
    """
    identity = labels.manifest.identity
    vocab_size = identity.vocab_size
    for group in labels.row_groups:
        with labels.reader.open(group, "read") as opened:
            table = drop_unlabeled(opened.read(COLUMNS)).combine_chunks()
        tokens = coalesce(table, "student_input_ids", "input_ids")
        flat = tokens.flatten().to_numpy()
        offsets = list_offsets(tokens)
        if flat.size and not 0 <= flat.min() <= flat.max() < vocab_size:
            outside = np.flatnonzero((flat < 0) | (flat >= vocab_size))[0]
            raise LabelSetError(
                f"a token id is outside the vocabulary of {vocab_size}",
                row=row_names(table)[int(np.searchsorted(offsets[1:], outside, side="right"))],
                hint="run `labeler verify` on the label set",
            )
        if len(table):
            if identity.keep_positions is not None:
                table = _with_whole_spans(table, np.diff(offsets))
            yield TrainingGroup(table, flat, offsets)


def _with_whole_spans(table: pa.Table, lengths: NDArray[np.int64]) -> pa.Table:
    """Return rows whose only span begins at their first label and ends with the row."""
    spans = coalesce(table, "student_spans", "spans")
    first = spans.flatten().take(pa.array(list_offsets(spans)[:-1]))
    fields = [first.field("start"), pa.array(lengths, pa.int32()), first.field("kind")]
    whole = pa.StructArray.from_arrays(fields, fields=list(spans.type.value_type))
    offsets = pa.array(np.arange(len(table) + 1, dtype=np.int32))
    column = pa.ListArray.from_arrays(offsets, whole, type=spans.type)
    return table.set_column(table.column_names.index("student_spans"), "student_spans", column)


def draw_number(seed: int, what: str, key: RowKey) -> int:
    """Return a number below 2^64 that depends on seed, purpose and row alone."""
    text = f"{seed}\0{what}\0{key.name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class RowSample:
    """A random sample without replacement: the rows with the smallest hashes.

    The same rows are drawn whatever the order of the row groups, and most of them again after an
    append.
    """

    def __init__(self, size: int, seed: int, what: str) -> None:
        self.size, self.seed, self.what = size, seed, what
        self.seen = 0
        self._heap: list[tuple[int, str, TrainingRow]] = []

    def offer(self, group: TrainingGroup, rows: NDArray[np.bool_] | None = None) -> None:
        """Offer the rows of a group, or some of them."""
        numbers = np.arange(len(group)) if rows is None else np.flatnonzero(rows)
        self.seen += len(numbers)
        if not self.size:
            return
        keys = group.table.select(KEY_COLUMNS).take(pa.array(numbers)).to_pylist()
        for number, record in zip(numbers.tolist(), keys):
            key = RowKey.model_construct(**record)
            rank = -draw_number(self.seed, self.what, key)
            if len(self._heap) < self.size:
                heapq.heappush(self._heap, (rank, key.name, group.row(number)))
            elif rank > self._heap[0][0]:
                heapq.heapreplace(self._heap, (rank, key.name, group.row(number)))

    def rows(self) -> list[TrainingRow]:
        """Return the rows drawn, by their keys."""
        return [row for _, _, row in sorted(self._heap, key=lambda drawn: drawn[1])]
