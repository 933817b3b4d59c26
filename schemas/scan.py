"""A label set as a Polars LazyFrame."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from schemas.labelset import open_label_set


def scan(path: Path | str, *, verify: bool = True, allow_partial: bool = False) -> pl.LazyFrame:
    """Scan a label set with Polars, by default after every byte of it proved to be unaltered.

    `pl.scan_parquet("LABELS/shards/*.parquet")` gives the same frame, but Polars checks neither
    hashes nor page checksums: it reads an altered shard without a word.

    Args:
        path: the set's folder.
        verify: hash every row group first (once through the files at read speed).
        allow_partial: also take a set that is still being labeled.

    Returns:
        LazyFrame with the columns of docs/format.md, one sequence a row.

    Raises:
        LabelSetError: the set cannot be opened, or a shard is altered.
    """
    labels = open_label_set(path, allow_partial=allow_partial)
    if verify:
        for group in labels.row_groups:
            labels.read_row_group(group, columns=[])
    return pl.scan_parquet([labels.path / shard for shard in labels.shards])
