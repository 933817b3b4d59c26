"""Labeled positions in Polars: rows of a label set to one position a row, and functions of these.

`schemas.polars_ext` gives them their public names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from schemas.arrow import KEY_COLUMNS
from schemas.errors import SoftshardsError

PER_POSITION = (
    *("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob"),
    *("entropy", "log_normalizer"),
)
NULLABLE = ("entropy", "log_normalizer")


def of_spans(spans: pl.Expr | str) -> pl.Expr:
    """Labeled positions of each row, list[i32], in label order."""
    start, stop = (pl.element().struct.field(name) for name in ("start", "stop"))
    return _of(spans).list.eval(
        pl.int_ranges(start, stop, dtype=pl.Int32).explode(empty_as_null=False)
    )


def kinds(spans: pl.Expr | str) -> pl.Expr:
    """Kind of the span of each labeled position of each row, list[str], in label order."""
    start, stop, kind = (pl.element().struct.field(name) for name in ("start", "stop", "kind"))
    return _of(spans).list.eval(kind.repeat_by(stop - start).explode(empty_as_null=False))


def explode(
    frame: pl.LazyFrame, columns: Sequence[str] = (), keep: Sequence[str] = ()
) -> pl.LazyFrame:
    """Rows of a label set to one labeled position a row (`polars_ext.LazyLabels.explode`)."""
    names = frame.collect_schema().names()
    position = of_spans("spans")
    lists = {"position": position, "kind": kinds("spans")}
    if "input_ids" in names:
        lists["token_id"] = pl.col("input_ids").list.gather(position)
    lists |= {name: pl.col(name) for name in PER_POSITION if name in names}
    for name in set(NULLABLE) & set(lists):
        # All lists of a row must be as long as each other.
        lists[name] = pl.coalesce(name, pl.lit(None).repeat_by(position.list.len()))
    if missing := [name for name in columns if name not in lists]:
        raise SoftshardsError(
            f"no column {missing[0]!r} to explode", hint=f"there are {', '.join(lists)}"
        )
    wanted = {name: lists[name] for name in columns or lists}
    rows = [name for name in KEY_COLUMNS if name in names]
    rows += [name for name in keep if name not in rows]
    return frame.select(*rows, **wanted).explode(list(wanted), empty_as_null=False)


def each(columns: Sequence[pl.Expr | str], function: Callable[..., pl.Series]) -> pl.Expr:
    """`function` of the positions of label columns, one sequence or one position a row.

    Args:
        columns: the first of type list[list] or list; the others are one level flatter or as deep.
        function: of Series with one position a row; elementwise.

    Returns:
        Its result: in a list a row where the columns have one sequence a row. Null where any
        column is.
    """

    def flat_or_nested(series: Sequence[pl.Series]) -> pl.Series:
        kind: Any = series[0].dtype
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.List):
            return _nested(series, function)
        return function(*series)

    return pl.map_batches([_of(c) for c in columns], flat_or_nested, is_elementwise=True)


def _nested(series: Sequence[pl.Series], function: Callable[..., pl.Series]) -> pl.Series:
    valid = pl.select(pl.all_horizontal(s.is_not_null() for s in series)).to_series()
    kept = [s if valid.all() else s.filter(valid) for s in series]
    flat = function(*(s.explode(empty_as_null=False, keep_nulls=False) for s in kept))
    lengths = series[0].list.len().fill_null(0).to_numpy() * valid.to_numpy()
    return listed(flat, lengths, valid).alias(series[0].name)


def listed(values: pl.Series, lengths: Any, valid: pl.Series) -> pl.Series:
    """Values in lists of these lengths, null where not `valid`."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    lists = pa.LargeListArray.from_arrays(
        pa.array(offsets), values.to_arrow(), mask=pa.array(~valid.to_numpy())
    )
    return pl.Series(values.name, pl.from_arrow(lists))


def _of(column: pl.Expr | str) -> pl.Expr:
    return pl.col(column) if isinstance(column, str) else column
