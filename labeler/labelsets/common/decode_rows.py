"""Decode the labels of rows that a stranger may have written."""

from __future__ import annotations

import pyarrow as pa

from schemas import LabelSetError
from schemas.codec import DecodedLabels, decode


def decode_rows(table: pa.Table) -> DecodedLabels:
    """Decode the label columns of rows, as `schemas.codec.decode` does.

    Raises:
        LabelSetError: the columns contradict each other; names the first row.
    """
    try:
        return decode(table)
    except ValueError as error:
        raise LabelSetError(
            f"the labels cannot be decoded: {error}",
            row=str(table["id"][0]) if table.num_rows else None,
            hint="`labeler verify` names each row that breaks a rule",
        ) from error
