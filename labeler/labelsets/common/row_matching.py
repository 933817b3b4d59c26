"""Match the rows of two label sets that hold the same records."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from schemas import LabelSet, SoftshardsError
from schemas.arrow import KEY_COLUMNS

MATCHED_COLUMNS = (*KEY_COLUMNS, "parent_id")
"""Columns that `match_rows` needs."""


def require_same_tokenizer(a: LabelSet, b: LabelSet) -> None:
    """Reject two sets whose ids mean different tokens.

    Raises:
        SoftshardsError: the tokenizers differ; the message gives their digests.
    """
    ours, theirs = a.manifest.identity.tokenizer, b.manifest.identity.tokenizer
    if ours != theirs:
        raise SoftshardsError(
            f"the sets have different tokenizers ({ours[:16]}... and {theirs[:16]}...): their ids "
            "mean different tokens",
            path=b.place,
            hint="compare teachers that share a tokenizer",
        )


def row_table(labels: LabelSet, columns: Sequence[str]) -> pl.DataFrame:
    """Read scalar columns of all rows, without hashing the shards.

    Returns:
        One line per row: the columns, its row group (`group`), and its place in that (`row`).

    Raises:
        SoftshardsError: the set has no rows, or a shard cannot be read.
    """
    frames = [
        pl.DataFrame(labels.read_row_group(group, columns, verify=False))
        .with_row_index("row")
        .with_columns(group=pl.lit(number, pl.UInt32))
        for number, group in enumerate(labels.row_groups)
    ]
    if not frames:
        raise SoftshardsError("the set has no rows", path=labels.place, hint="label some input")
    return pl.concat(frames)


def match_rows(ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """Match rows by key, and the remaining rows by the row that both were made from.

    A set made by labeling another one again has new ids for the later chunks of a document. Its
    `parent_id` names the rows they came from.

    Args:
        ours: one line per row, with `MATCHED_COLUMNS` and `number`.
        theirs: one line per row, with `MATCHED_COLUMNS` and other columns NAME.

    Returns:
        `number` (once) and NAME_b, for the rows that have a partner.
    """
    own = [name for name in theirs.columns if name not in MATCHED_COLUMNS]
    key = pl.format("{}/{}/{}", *KEY_COLUMNS)
    origin = pl.coalesce("parent_id", key).alias("origin")
    ours = ours.select("number", *KEY_COLUMNS, origin)
    theirs = theirs.select(
        *KEY_COLUMNS, origin, *(pl.col(name).alias(f"{name}_b") for name in own)
    ).unique(KEY_COLUMNS, keep="first")
    by_key = ours.join(theirs.drop("origin"), on=KEY_COLUMNS)
    # Several generations may come from one row: nothing says which is which.
    left = ours.join(by_key, on="number", how="anti").unique("origin", keep="none")
    free = theirs.join(by_key, on=KEY_COLUMNS, how="anti").unique("origin", keep="none")
    by_origin = left.join(free.drop(KEY_COLUMNS), on="origin")
    columns = ("number", *(f"{name}_b" for name in own))
    return pl.concat([by_key.select(columns), by_origin.select(columns)])
