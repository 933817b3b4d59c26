"""Labeled positions in Polars: explode rows to one position per row, and map over positions.

`schemas.polars_ext` gives these functions their public names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import ArrayLike

from schemas.arrow import KEY_COLUMNS
from schemas.errors import SoftshardsError
from schemas.kept_positions import LABEL_WEIGHTS

PER_POSITION = (
    *("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob"),
    *("entropy", "log_normalizer", LABEL_WEIGHTS),
)
NULLABLE = ("entropy", "log_normalizer")


def span_positions(spans: pl.Expr | str) -> pl.Expr:
    """Return the labeled positions of each row, list[i32], in label order."""
    start, stop = (pl.element().struct.field(name) for name in ("start", "stop"))
    return _as_expr(spans).list.eval(
        pl.int_ranges(start, stop, dtype=pl.Int32).explode(empty_as_null=False)
    )


def span_kinds(spans: pl.Expr | str) -> pl.Expr:
    """Return the span kind of each labeled position of each row, list[str], in label order."""
    start, stop, kind = (pl.element().struct.field(name) for name in ("start", "stop", "kind"))
    return _as_expr(spans).list.eval(kind.repeat_by(stop - start).explode(empty_as_null=False))


def explode(
    frame: pl.LazyFrame, columns: Sequence[str] = (), keep: Sequence[str] = ()
) -> pl.LazyFrame:
    """Explode rows to one labeled position per row (`polars_ext.LazyLabels.explode`)."""
    names = frame.collect_schema().names()
    position = span_positions("spans")
    lists = {"position": position, "kind": span_kinds("spans")}
    if "input_ids" in names:
        lists["token_id"] = pl.col("input_ids").list.gather(position)
    lists |= {name: pl.col(name) for name in PER_POSITION if name in names}
    for name in set(NULLABLE) & set(lists):
        # All lists of a row must have the same length.
        lists[name] = pl.coalesce(name, pl.lit(None).repeat_by(position.list.len()))
    if missing := [name for name in columns if name not in lists]:
        raise SoftshardsError(
            f"no column {missing[0]!r} to explode", hint=f"choose from {', '.join(lists)}"
        )
    wanted = {name: lists[name] for name in columns or lists}
    rows = [name for name in KEY_COLUMNS if name in names]
    rows += [name for name in keep if name not in rows]
    return frame.select(*rows, **wanted).explode(list(wanted), empty_as_null=False)


def map_positions(columns: Sequence[pl.Expr | str], function: Callable[..., pl.Series]) -> pl.Expr:
    """Map an elementwise function over the positions of label columns.

    Args:
        columns: the first one of type list[list] or list; the others as deep, or one level less.
        function: takes one Series per column, with one position per row.

    Returns:
        The results, in one list per row where the columns have one sequence per row. Null where a
        column is null.
    """

    def flat_or_nested(series: Sequence[pl.Series]) -> pl.Series:
        kind = series[0].dtype
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.List):
            return _map_nested(series, function)
        return function(*series)

    return pl.map_batches([_as_expr(c) for c in columns], flat_or_nested, is_elementwise=True)


def _map_nested(series: Sequence[pl.Series], function: Callable[..., pl.Series]) -> pl.Series:
    valid = pl.select(pl.all_horizontal(s.is_not_null() for s in series)).to_series()
    kept = [s if valid.all() else s.filter(valid) for s in series]
    flat = function(*(s.explode(empty_as_null=False, keep_nulls=False) for s in kept))
    lengths = series[0].list.len().fill_null(0).to_numpy() * valid.to_numpy()
    return in_lists(flat, lengths, valid).alias(series[0].name)


def in_lists(values: pl.Series, lengths: ArrayLike, valid: pl.Series) -> pl.Series:
    """Return values in lists of the given lengths, null where not `valid`."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    lists = pa.LargeListArray.from_arrays(
        pa.array(offsets), values.to_arrow(), mask=pa.array(~valid.to_numpy())
    )
    return pl.Series(values.name, pl.from_arrow(lists))


def _as_expr(column: pl.Expr | str) -> pl.Expr:
    return pl.col(column) if isinstance(column, str) else column
