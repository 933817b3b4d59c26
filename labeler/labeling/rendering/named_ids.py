"""`--ids-from`: ids that the input names for each label, to be labeled beside the top-k."""

from __future__ import annotations

from labeler.labeling.inputs.file_formats import Columns
from labeler.labeling.rendering.messages import read_list
from labeler.labeling.rendering.spans import BadRecord
from schemas.asked_ids import asked_column, asked_count


def read_asked(columns: Columns, ids_from: str, n_labels: int, vocab_size: int) -> list[list[int]]:
    """Return the first ids that a record names for each of its labels, in span order.

    Args:
        columns: of the record.
        ids_from: the value of the flag.
        n_labels: labels of the record, after it was cut to length.
        vocab_size: number of real ids.

    Raises:
        BadRecord: the column is missing, has not one list per label, or names no token.
    """
    column, count = asked_column(ids_from), asked_count(ids_from)
    lists = read_list(columns, column)
    if lists is None:
        raise BadRecord(f"--ids-from: there is no column {column!r}")
    if len(lists) != n_labels:
        raise BadRecord(f"column {column!r} has {len(lists)} lists of ids for {n_labels} labels")
    asked: list[list[int]] = []
    for ids in lists:
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise BadRecord(f"column {column!r} is not a list of lists of token ids")
        first = list(dict.fromkeys(ids))[:count]
        if any(not 0 <= i < vocab_size for i in first):
            raise BadRecord(
                f"column {column!r} names an id outside the tokenizer of {vocab_size} tokens"
            )
        asked.append(first)
    return asked
