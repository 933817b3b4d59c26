"""Read the rows of other tools' files, and their columns as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labeling.inputs.file_formats import READ_ERRORS, read_items, suffix_of
from labeler.labeling.inputs.parquet_checks import parquet_batches
from labeler.labelsets.exchange.exchange_formats import FORMATS
from schemas.errors import SoftshardsError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.zst", ".jsonl.gz")
ROWS = 8
"""Parquet rows that are held at a time."""

Row = dict[str, Any]
"""A row's columns by name: Python values of a JSON line, Arrow scalars of a Parquet row."""
Number = TypeVar("Number", np.int64, np.float64)


class BadRow(Exception):
    """A row that a label set cannot hold; the message is the reason."""


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """Return the named files, and the files in the named folders, in order.

    Raises:
        SoftshardsError: a file is missing, or of a kind that cannot be read.
    """
    found: list[Path] = []
    for path in inputs:
        inside = sorted(p for p in path.rglob("*") if suffix_of(p.name) in SUFFIXES)
        if path.is_dir() and not inside:
            raise SoftshardsError(
                "the folder has no file to import", path=path, hint=f"known: {', '.join(SUFFIXES)}"
            )
        if not path.is_dir() and not path.is_file():
            raise SoftshardsError("no such file", path=path, hint="check the name")
        if path.is_file() and suffix_of(path.name) not in SUFFIXES:
            raise SoftshardsError(
                "this kind of file cannot be imported",
                path=path,
                hint=f"known: {', '.join(SUFFIXES)}",
            )
        found += inside if path.is_dir() else [path]
    return found


def read_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    """Yield the number of each row of a file, and its columns, or the reason why it is bad.

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
            f"the file cannot be read: {error}", path=path, hint="get an intact copy"
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    with path.open("rb") as stream:
        for batch in parquet_batches(stream, ROWS):
            for index in range(batch.num_rows):
                yield number, {name: batch.column(name)[index] for name in batch.schema.names}
                number += 1


def recognize_format(files: Sequence[Path]) -> str:
    """Return the format whose columns the first row has.

    Raises:
        SoftshardsError: the format is unknown, the rows have no labels, or they are packed.
    """
    first = next((row for path in files for _, row in read_rows(path)), None)
    path = files[0]
    if first is None:
        raise SoftshardsError("the file has no rows", path=path, hint="check the input")
    names = set(first) if isinstance(first, dict) else set()
    for name, format in FORMATS.items():
        if name != "trl" and set(format.columns) <= names:
            return name
    if "compressed_logprobs" in names or "packed_indices" in names:
        raise SoftshardsError(
            "DistillKit's compressor has packed these rows, with settings that they do not record",
            path=path,
            hint="unpack them with DistillKit (`decompress_to_sparse`) into token_ids, top_values",
        )
    if {"prompt", "completion"} <= names or {"messages", "text"} & names:
        raise SoftshardsError(
            "the file has no labels, only text",
            path=path,
            hint=f"label it with a teacher: `labeler label {path} --model TEACHER --out LABELS`",
        )
    known = "; ".join(f"{n}: {', '.join(f.columns)}" for n, f in FORMATS.items() if n != "trl")
    raise SoftshardsError(
        f"not a known format: the first row has {', '.join(sorted(names)) or 'no columns'}",
        path=path,
        hint=f"the formats and their columns are {known}",
    )


def python_value(row: Row, name: str) -> Any:
    """Return a column as a Python value; None if it is missing or null."""
    value = row.get(name)
    return value.as_py() if isinstance(value, pa.Scalar) else value


def list_column(row: Row, name: str, dtype: type[Number]) -> NDArray[Number]:
    """Return a list column as an array [n].

    Raises:
        BadRow: the column is missing, or not a list of such values.
    """
    return _numbers(_list(row, name, pa.list_(_arrow_type(dtype))), name, dtype)


def nested_column(
    row: Row, name: str, dtype: type[Number]
) -> tuple[NDArray[np.int64], NDArray[Number]]:
    """Return the lengths of the inner lists [n] of a list of lists, and their values, joined.

    Nulls among floats become -inf: JSON cannot spell it.

    Raises:
        BadRow: the column is missing, or not a list of lists of such values.
    """
    outer = _list(row, name, pa.list_(pa.list_(_arrow_type(dtype))))
    lengths = np.asarray(outer.value_lengths().fill_null(0), np.int64)
    return lengths, _numbers(outer.flatten(), name, dtype)


def _arrow_type(dtype: type[Number]) -> pa.DataType:
    return pa.from_numpy_dtype(np.dtype(dtype))


def _list(row: Row, name: str, kind: pa.ListType) -> Any:
    """Return a list column as an Arrow array; its type in PyArrow is untyped."""
    value = row.get(name)
    try:
        if isinstance(value, pa.Scalar):
            if not isinstance(value, pa.ListScalar):
                raise TypeError(f"it is a {value.type}")
            value = value.values
            value = value if value is None else value.cast(kind.value_type)
        elif value is not None:
            value = pa.array(value, kind.value_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadRow(f"{name} is not a {kind}: {str(error).splitlines()[0]}") from error
    if value is None:
        raise BadRow(f"{name} is missing")
    return value


def _numbers(values: Any, name: str, dtype: type[Number]) -> NDArray[Number]:
    if values.null_count:
        if not np.issubdtype(dtype, np.floating):
            raise BadRow(f"{name} holds nulls")
        values = values.fill_null(float("-inf"))
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype)
