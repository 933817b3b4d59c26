"""Rows of other tools' files: read a few at a time, and taken apart into arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labeler.labeling.inputs.file_formats import READ_ERRORS, read_items, suffix_of
from labeler.labelsets.exchange.exchange_formats import FORMATS
from schemas import SoftshardsError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.zst", ".jsonl.gz")
ROWS = 8
"""Parquet rows that are held at a time."""

Row = dict[str, Any]
"""A row's columns by name: Python values of a JSON line, Arrow scalars of a Parquet row."""


class BadRow(Exception):
    """A row that cannot be a label set's; the message is the reason."""


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named, in order.

    Raises:
        SoftshardsError: a file is missing, or is none that can be read.
    """
    found: list[Path] = []
    for path in inputs:
        inside = sorted(p for p in path.rglob("*") if suffix_of(p.name) in SUFFIXES)
        if path.is_dir() and not inside:
            raise SoftshardsError(
                "no such file in this folder", path=path, hint=f"known: {', '.join(SUFFIXES)}"
            )
        if not path.is_dir() and not path.is_file():
            raise SoftshardsError("no such file", path=path, hint="check the name")
        if path.is_file() and suffix_of(path.name) not in SUFFIXES:
            raise SoftshardsError(
                "not a file that can be imported", path=path, hint=f"known: {', '.join(SUFFIXES)}"
            )
        found += inside if path.is_dir() else [path]
    return found


def read_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    """Number and columns of each row of a file, or why it is none.

    Raises:
        SoftshardsError: the file as a whole is damaged.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        with path.open("rb") as stream:
            yield from read_items(stream, suffix_of(path.name) or "")
    except READ_ERRORS as error:
        raise SoftshardsError(
            f"the file cannot be read: {error}", path=path, hint="get a whole copy of it"
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS):
            for index in range(batch.num_rows):
                yield number, {name: batch.column(name)[index] for name in batch.schema.names}
                number += 1


def format_of(files: Sequence[Path]) -> str:
    """The format of files, told by the columns of their first row.

    Raises:
        SoftshardsError: it is none, has no labels, or they are packed.
    """
    first = next((row for path in files for _, row in read_rows(path)), None)
    path = files[0]
    if first is None:
        raise SoftshardsError("there is no row", path=path, hint="check the input")
    names = set(first) if isinstance(first, dict) else set()
    for name, form in FORMATS.items():
        if name != "trl" and set(form.columns) <= names:
            return name
    if "compressed_logprobs" in names or "packed_indices" in names:
        raise SoftshardsError(
            "these rows are packed by DistillKit's compressor, with settings that are not in them",
            path=path,
            hint="unpack them with DistillKit (`decompress_to_sparse`) into token_ids, top_values",
        )
    if {"prompt", "completion"} <= names or {"messages", "text"} & names:
        raise SoftshardsError(
            "there are no labels in this file, only text",
            path=path,
            hint=f"let a teacher label it: `labeler label {path} --model TEACHER --out LABELS`",
        )
    known = "; ".join(f"{n}: {', '.join(f.columns)}" for n, f in FORMATS.items() if n != "trl")
    raise SoftshardsError(
        f"not a known format: the first row has {', '.join(sorted(names)) or 'no columns'}",
        path=path,
        hint=f"the formats and their columns are {known}",
    )


def plain(value: Any) -> Any:
    """A column's value as Python has it."""
    return value.as_py() if isinstance(value, pa.Scalar) else value


def flat(row: Row, name: str, dtype: Any) -> NDArray[Any]:
    """A list column's values [n].

    Raises:
        BadRow: the column is missing, or is no list of such values.
    """
    return _numbers(_list(row, name, pa.list_(_arrow(dtype))), name, dtype)


def nested(row: Row, name: str, dtype: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Lengths of the inner lists [n] of a list of lists, and their values, joined.

    Nulls among floats are -inf: JSON has no other spelling of it.

    Raises:
        BadRow: the column is missing, or is no list of lists of such values.
    """
    outer = _list(row, name, pa.list_(pa.list_(_arrow(dtype))))
    lengths = np.asarray(outer.value_lengths().fill_null(0), np.int64)
    return lengths, _numbers(outer.flatten(), name, dtype)


def _arrow(dtype: Any) -> pa.DataType:
    return pa.from_numpy_dtype(np.dtype(dtype))


def _list(row: Row, name: str, kind: pa.DataType) -> pa.Array:
    value = row.get(name)
    try:
        if isinstance(value, pa.Scalar):
            value = value.values
            value = value if value is None else value.cast(kind.value_type)
        elif value is not None:
            value = pa.array(value, kind.value_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadRow(f"{name} is not a {kind}: {str(error).splitlines()[0]}") from error
    if value is None:
        raise BadRow(f"there is no {name}")
    return value


def _numbers(values: pa.Array, name: str, dtype: Any) -> NDArray[Any]:
    if values.null_count:
        if not np.issubdtype(dtype, np.floating):
            raise BadRow(f"{name} holds nulls")
        values = values.fill_null(float("-inf"))
    return values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
