"""Read the columns of records that are already tokenized: token ids, and the spans to label."""

from __future__ import annotations

import numpy as np

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.rendering.messages import read_list
from labeler.labeling.rendering.spans import BadRecord, Span, Tokens, count_labels
from schemas.labeled_spans import SpanRecord, span_problem

STUDENT_IDS, STUDENT_SPANS = "student_input_ids", "student_spans"
"""Columns of a label set's row whose student sees different tokens."""


def read_ids(columns: Columns, name: str, vocab_size: int) -> list[int]:
    """Return the token ids of a column.

    Raises:
        BadRecord: the column holds something else, or an id that the tokenizer does not have.
    """
    values = read_list(columns, name) or []
    try:
        ids = np.array(values)
    except ValueError as error:  # lists of different lengths
        raise BadRecord(f"column {name!r} is not a list of token ids: {error}") from error
    if not values or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise BadRecord(f"column {name!r} is not a list of token ids")
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        raise BadRecord(f"column {name!r} has the id {bad}; the tokenizer has {vocab_size} tokens")
    checked: list[int] = ids.tolist()
    return checked


def read_tokens(columns: Columns, ids_name: str, spans_name: str, vocab_size: int) -> Tokens:
    """Return token ids and their spans: {start, stop} and a `kind`, by default `text`.

    Raises:
        BadRecord: a column holds something else, or the spans are not sorted and disjoint with
            1 <= start < stop <= number of tokens.
    """
    ids = read_ids(columns, ids_name, vocab_size)
    try:
        spans = tuple(
            Span(start=int(s["start"]), stop=int(s["stop"]), kind=s.get("kind", "text"))
            for s in read_list(columns, spans_name) or []
        )
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise BadRecord(f"column {spans_name!r} is not a list of {{start, stop, kind}}") from error
    if not spans:
        raise BadRecord(f"column {spans_name!r} has no spans: there is nothing to label")
    records: list[SpanRecord] = [{"start": s.start, "stop": s.stop, "kind": s.kind} for s in spans]
    if problem := span_problem(records, len(ids), count_labels(spans)):
        raise BadRecord(f"column {spans_name!r}: {problem}")
    return Tokens(ids=ids, spans=spans)
