"""Decode rows of label sets into arrays, in the student's context and vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas import Labels, LabelSetError, decode
from schemas.arrow import KEY_COLUMNS, SPAN_KINDS
from schemas.arrow_lists import list_offsets
from schemas.codec import LABEL_COLUMNS
from schemas.labeled_spans import positions
from schemas.row_lengths import LENGTH_COLUMNS
from trainer.data.check_rows import layout_problem, value_problem
from trainer.data.vocab_map import VocabMap

ROW_COLUMNS = (
    *(*KEY_COLUMNS, "source", *LENGTH_COLUMNS),
    *("input_ids", "spans", "student_spans", *LABEL_COLUMNS),
)
SET_NUMBER = "set_number"
"""Column that `LabelDataset` adds to rows of several sets, where their states are read."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The decoded rows of one window, in the student's context and vocabulary.

    Attributes:
        keys: name of each row.
        documents: id of each row's record.
        tokens: int32, ids of all rows.
        token_offsets: row i has tokens[token_offsets[i]:token_offsets[i + 1]].
        labels: labels of all rows.
        label_offsets: row i has labels[label_offsets[i]:label_offsets[i + 1]].
        positions: int64 [labels], the position t of each labeled token in its own row.
        kinds: int64 [labels], index into `schemas.arrow.SPAN_KINDS`.
        sources: input file of each row, "" where it is not known.
        meta: JSON of each row's other columns, or None; empty where it was not read.
        sets: int64 [rows], the label set of a mixture that each row is of.
    """

    keys: list[str]
    documents: list[str]
    tokens: NDArray[np.int32]
    token_offsets: NDArray[np.int64]
    labels: Labels
    label_offsets: NDArray[np.int64]
    positions: NDArray[np.int64]
    kinds: NDArray[np.int64]
    sources: list[str]
    meta: list[str | None]
    sets: NDArray[np.int64]


def decode_window(
    table: pa.Table,
    *,
    vocab_size: int,
    vocab_map: VocabMap | None = None,
    temperature: float | None = None,
    largest_weight: float = np.inf,
) -> Window:
    """Decode rows of a shard, without those that have no labels.

    The student's own context is used where a row has one, else the teacher's. With a `vocab_map`,
    which must know all tokens of the rows, ids are the student's.

    Args:
        table: rows that `require_layout` accepts.
        vocab_size: number of the teacher's real ids.
        vocab_map: from the teacher's ids to the student's, where they differ.
        temperature: of the column of tails that `one_temperature` keeps, if the rows have it.
        largest_weight: the largest weight that a sampled label may have.

    Raises:
        LabelSetError: a label cannot be decoded, or is not a distribution over the vocabulary.
    """
    table = drop_unlabeled(table).combine_chunks()
    keys = row_names(table)
    tokens = coalesce(table, "student_input_ids", "input_ids")
    spans = coalesce(table, "student_spans", "spans")
    try:
        decoded = decode(table)
    except ValueError as error:
        raise _bad_row(f"{keys[0]} or one of the {len(keys) - 1} after it", str(error)) from error
    if problem := value_problem(
        decoded.labels, decoded.offsets, vocab_size, temperature, largest_weight
    ):
        raise _bad_row(keys[problem[0]], problem[1])
    flat = spans.flatten()
    start, stop = (flat.field(name).to_numpy().astype(np.int64) for name in ("start", "stop"))
    covered = positions(start, stop)
    kind = pc.index_in(flat.field("kind"), pa.array(SPAN_KINDS)).to_numpy(zero_copy_only=False)
    flat_tokens = tokens.flatten().to_numpy()
    return Window(
        keys=keys,
        documents=table["id"].to_pylist(),
        tokens=vocab_map.map_tokens(flat_tokens) if vocab_map else flat_tokens,
        token_offsets=list_offsets(tokens),
        labels=vocab_map.map_labels(decoded.labels) if vocab_map else decoded.labels,
        label_offsets=decoded.offsets,
        positions=covered,
        kinds=np.repeat(kind.astype(np.int64), stop - start),
        sources=[source or "" for source in table["source"].to_pylist()],
        meta=table["meta"].to_pylist() if "meta" in table.column_names else [],
        sets=(
            table[SET_NUMBER].to_numpy()
            if SET_NUMBER in table.column_names
            else np.zeros(len(keys), np.int64)
        ),
    )


def require_layout(table: pa.Table, vocab_size: int) -> None:
    """Refuse rows whose tokens, spans and numbers of labels do not fit each other.

    Raises:
        LabelSetError: names the first such row.
    """
    if problem := layout_problem(table, vocab_size):
        raise _bad_row(row_names(table)[problem[0]], problem[1])


def _bad_row(name: str, what: str) -> LabelSetError:
    return LabelSetError(what, row=name, hint="run `labeler verify` on the label set")


def drop_unlabeled(table: pa.Table) -> pa.Table:
    """Return the rows that have labels."""
    has_labels = pc.greater(table["n_labels"], 0)
    return table if pc.all(has_labels).as_py() else table.filter(has_labels)


def row_names(table: pa.Table) -> list[str]:
    """Return the name of each row for errors: id, chunk and sample."""
    rows = zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True)
    return [f"{record} (chunk {chunk}, sample {sample})" for record, chunk, sample in rows]


def coalesce(table: pa.Table, first: str, second: str) -> pa.ListArray:
    """Return the first column where it is not null, else the second, as one array."""
    if table[first].null_count == table.num_rows:
        column = table[second]
    else:
        column = pc.if_else(pc.is_valid(table[first]), table[first], table[second])
    return column.combine_chunks()
