"""Read the records of an input. A bad record becomes a reject; only a bad file is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labeler.labeling.inputs.file_formats import READ_ERRORS, SEEKABLE, Columns, read_items
from labeler.labeling.inputs.find_inputs import DataFile, Input, InputSet
from labeler.labeling.inputs.locations import as_input_errors, display_path, open_stream
from schemas.arrow_alloc import as_arrow
from schemas.arrow_lists import list_offsets, one_array
from schemas.asked_ids import asked_column, asked_count

KEY = ("id", "chunk", "sample")
CARRIED = ("prompt", "generation", "input_ids", "spans", "student_input_ids", "student_spans")
"""Columns of a label set's row that become columns of the record."""
ID_LISTS = {"topk_ids"}
"""Columns of a label set that --ids-from can name: with the likeliest ids first."""


class ArrowColumns(Columns):
    """Columns of a row of Parquet or Arrow, where a null in a struct may be a key that it lacks."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One input record.

    Attributes:
        id: its default id, `relative path:number`.
        source: name of its input.
        columns: its values by column.
        parent_id: if the input is a label set, the key of the record's row.
    """

    id: str
    source: str
    columns: Columns
    parent_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A record or row that cannot be labeled, and why; stored in `journal/*.rejects.parquet`."""

    id: str
    source: str | None
    reason: str
    chunk: int | None = None
    sample: int | None = None


def read_records(source: Input, asked: str | None = None) -> Iterator[Record | Reject]:
    """Read one input, record by record, in order and with bounded memory.

    Args:
        source: the input.
        asked: value of --ids-from: of label sets, this column becomes one of the record's, too.

    Raises:
        SoftshardsError: the file as a whole cannot be read.
    """
    if isinstance(source, InputSet):
        return _label_set_records(source, asked)
    return _file_records(source)


def _file_records(file: DataFile) -> Iterator[Record | Reject]:
    first = 0
    for path in file.paths:
        where = file.name if file.stdin else display_path(file.fs, path)
        hint = "check that the file is complete and that its suffix is right"
        seekable = file.suffix in SEEKABLE
        number = -1
        with (
            as_input_errors(file.fs, where, hint, READ_ERRORS),
            open_stream(file.fs, path, seekable=seekable) as stream,
        ):
            for number, item in read_items(stream, file.suffix):
                name = f"{file.name}:{first + number}"
                if isinstance(item, dict):
                    columns = ArrowColumns(item) if seekable else item
                    yield Record(id=name, source=file.name, columns=columns)
                else:
                    yield Reject(id=name, source=file.name, reason=item)
        first += number + 1


def _label_set_records(source: InputSet, asked: str | None) -> Iterator[Record]:
    """Read the verified rows of a label set as records with token ids.

    Chunk 0, sample 0 of a row keeps the row's id; other chunks and samples get the whole key as id.
    """
    labels = source.labels
    lists = ID_LISTS.intersection([] if asked is None else [asked_column(asked)])
    for group in labels.row_groups:
        table = labels.read_row_group(group, columns=[*KEY, "meta", *CARRIED, *lists])
        for name in lists:
            table = _first_ids(table, name, asked_count(asked))
        for row in table.to_pylist():
            key = "{id}/{chunk}/{sample}".format(**row)
            name = key if row["chunk"] or row["sample"] else row["id"]
            meta = json.loads(row["meta"]) if row["meta"] else {}
            own = {column: row[column] for column in (*CARRIED, *lists) if row[column] is not None}
            columns = meta | own | {"id": name}
            yield Record(id=name, source=source.name, columns=columns, parent_id=key)


def _first_ids(table: pa.Table, name: str, count: int) -> pa.Table:
    """Cut the lists of ids of each label, before they become Python numbers."""
    column = one_array(table[name])
    cut = pc.list_slice(column.flatten(), 0, count)
    shorter = pa.ListArray.from_arrays(as_arrow(list_offsets(column).astype(np.int32)), cut)
    return table.set_column(table.column_names.index(name), name, shorter)
