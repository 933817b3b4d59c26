"""A label set as a Polars LazyFrame that verifies its reads and reads only what a query needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from schemas.arrow_alloc import as_arrow
from schemas.codec import DRAW_COLUMNS, LABEL_COLUMNS, OPTIONAL_LABEL_COLUMNS
from schemas.hidden_part import state_columns
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.labelset import LabelSet, open_label_set
from schemas.polars_ext import FACTS
from schemas.set_facts import facts_of
from schemas.shard import identity_schema
from schemas.shard_reader import OpenGroup, Verify
from schemas.state_codec import decode_states, label_offsets
from schemas.tempered_tails import TEMPERED_TAILS

LABELS = {*LABEL_COLUMNS, *OPTIONAL_LABEL_COLUMNS, *DRAW_COLUMNS, TEMPERED_TAILS, LABEL_WEIGHTS}
"""Columns that are read after the rows are filtered on the other columns."""


def scan(
    path: Path | str,
    *,
    verify: Verify = "read",
    allow_partial: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> pl.LazyFrame:
    """Scan a label set with Polars. The frame has the plain columns of docs/format.md.

    Filters on scalars (all columns but labels) are applied before label columns are read: a row
    group without a matching row costs nothing more, and codec `compact/1` is decoded for matching
    rows only. `pl.scan_parquet("LABELS/shards/*.parquet")` is not the same: it checks nothing and
    knows neither views nor that codec.

    Where the set has hidden states, the frame has a column for each layer (`final`, `layer_3`),
    with one vector of float32 per label. `hidden/` is read only for queries that use one.

    Args:
        path: a set's folder, a view, or the URL of either, as for `open_label_set`.
        verify: "read" checks footers by their hashes and each page read by its checksum. "full"
            reads and hashes each row group as a whole before the query uses it. "none" checks
            footers only.
        allow_partial: accept a set that is still being labeled.
        storage_options: options of the URL's filesystem, for fsspec.

    Returns:
        LazyFrame, one sequence per row; `frame.labels.facts` returns what `schemas.facts` does.
        An altered shard raises `LabelSetError` when the frame is collected.

    Raises:
        LabelSetError: the set cannot be opened.
    """
    labels = open_label_set(path, allow_partial=allow_partial, storage_options=storage_options)
    identity = labels.manifest.identity
    empty = pl.from_arrow(identity_schema(identity).empty_table())
    schema = dict(pl.DataFrame(empty).schema)
    if labels.states is not None:
        vectors = pl.List(pl.Array(pl.Float32, labels.states.dimensions))
        schema |= dict.fromkeys(labels.states.layers, vectors)
    frame = register_io_source(
        _source(labels, verify),
        schema=schema,
        is_pure=True,
        explain_name=f"label set {path}",
        explain_detail=f"{labels.rows} rows, {labels.labels} labels, k = {identity.k}",
    )
    setattr(frame, FACTS, facts_of(path, labels))
    return frame


Source = Callable[
    [list[str] | None, pl.Expr | None, int | None, int | None], Iterator[pl.DataFrame]
]


def _source(labels: LabelSet, verify: Verify) -> Source:
    """Return the function that Polars calls once per execution with the query's needs."""

    def read(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        wanted = with_columns or ([*labels.columns] if with_columns is None else ["id"])
        if with_columns is None and labels.states is not None:
            wanted += labels.states.layers
        conditions = [] if predicate is None else _conjuncts(predicate)
        left = labels.rows if n_rows is None else n_rows  # counted before the predicate
        for group in labels.row_groups:
            if left <= 0:
                return
            with labels.reader.open(group, verify) as opened:
                frame = _rows(labels, opened, wanted, conditions, left)
            left -= group.rows
            yield from frame.iter_slices(batch_size or max(1, frame.height))

    return read


def _rows(
    labels: LabelSet, group: OpenGroup, wanted: list[str], conditions: list[pl.Expr], n_rows: int
) -> pl.DataFrame:
    """Return the first `n_rows` rows of a row group that meet all conditions; labels come last."""
    last = LABELS.union(() if labels.states is None else labels.states.layers)
    early = [c for c in conditions if _roots(c) and not last.intersection(_roots(c))]
    late = [c for c in conditions if not _roots(c) or last.intersection(_roots(c))]
    keep = np.arange(group.group.rows) < n_rows
    parts = []
    if names := _distinct(name for c in early for name in _roots(c)):
        known = pl.DataFrame(group.read(names))
        keep &= known.select(pl.all_horizontal(early).fill_null(False)).to_series().to_numpy()
        parts.append(known.filter(keep))
    more = [*wanted, *(name for c in late for name in _roots(c))]
    rest = [name for name in _distinct(more) if name not in names]
    if not keep.any():
        return pl.DataFrame()
    if rest:
        parts.append(_read(labels, group, rest, keep))
    rows = pl.concat(parts, how="horizontal")
    return (rows.filter(late) if late else rows).select(wanted)


def _read(
    labels: LabelSet, group: OpenGroup, names: list[str], keep: NDArray[np.bool_]
) -> pl.DataFrame:
    """Read columns, with hidden states as vectors."""
    layers = [] if labels.states is None else [n for n in names if n in labels.states.layers]
    table = group.read([*(n for n in names if n not in layers), *state_columns(layers)], keep)
    frame = pl.DataFrame(table.drop_columns(state_columns(layers)))
    for layer in layers:
        states = decode_states(table, labels.basis(layer), layer)
        cells = pa.FixedSizeListArray.from_arrays(as_arrow(states.ravel()), states.shape[1])
        offsets = as_arrow(label_offsets(table, layer).astype(np.int32))
        rows = pl.Series(layer, pa.ListArray.from_arrays(offsets, cells))
        frame = frame.with_columns(rows) if frame.width else rows.to_frame()
    return frame.select(names)


def _roots(condition: pl.Expr) -> list[str]:
    return condition.meta.root_names()


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """Split `a & b & c` into [a, b, c]: Polars joins all filters into one."""
    parts = predicate.meta.pop()
    if len(parts) == 2 and (parts[1] & parts[0]).meta.eq(predicate):
        return [*_conjuncts(parts[1]), *_conjuncts(parts[0])]
    return [predicate]
