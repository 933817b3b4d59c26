"""Which row of a second label set is the same record as a row of the first."""

from __future__ import annotations

import polars as pl

from schemas.arrow import KEY_COLUMNS


def partners(ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """Match rows by key; what is left, by the row that both were made from.

    A set that was made by labeling another one again has new ids for the later chunks of a
    document, and names the rows they came from in `parent_id`.

    Args:
        ours: a row a line, with the key, `parent_id` and `number`.
        theirs: the same with columns of any name instead of `number`.

    Returns:
        Of the rows that have a partner: `number` (once), and those columns, each named NAME_b.
    """
    own = [name for name in theirs.columns if name not in (*KEY_COLUMNS, "parent_id")]
    key = pl.format("{}/{}/{}", *KEY_COLUMNS)
    origin = pl.coalesce("parent_id", key).alias("origin")
    ours = ours.select("number", *KEY_COLUMNS, origin)
    theirs = theirs.select(
        *KEY_COLUMNS, origin, *(pl.col(name).alias(f"{name}_b") for name in own)
    ).unique(KEY_COLUMNS, keep="first")
    by_key = ours.join(theirs.drop("origin"), on=KEY_COLUMNS)
    # Several generations may come from one row: which is which cannot be told.
    left = ours.join(by_key, on="number", how="anti").unique("origin", keep="none")
    free = theirs.join(by_key, on=KEY_COLUMNS, how="anti").unique("origin", keep="none")
    by_origin = left.join(free.drop(KEY_COLUMNS), on="origin")
    columns = ("number", *(f"{name}_b" for name in own))
    return pl.concat([by_key.select(columns), by_origin.select(columns)])
