"""Read the records of an input. A bad record becomes a reject; only a bad file is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from labeler.labeling.inputs.file_formats import READ_ERRORS, SEEKABLE, Columns, read_items
from labeler.labeling.inputs.find_inputs import DataFile, Input, InputSet
from labeler.labeling.inputs.locations import as_input_errors, display_path, open_stream

KEY = ("id", "chunk", "sample")
CARRIED = ("prompt", "generation", "input_ids", "spans", "student_input_ids", "student_spans")
"""Columns of a label set's row that become columns of the record."""


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


def read_records(source: Input) -> Iterator[Record | Reject]:
    """Read one input, record by record, in order and with bounded memory.

    Raises:
        SoftshardsError: the file as a whole cannot be read.
    """
    if isinstance(source, InputSet):
        return _label_set_records(source)
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


def _label_set_records(source: InputSet) -> Iterator[Record]:
    """Read the verified rows of a label set as records with token ids.

    Chunk 0, sample 0 of a row keeps the row's id; other chunks and samples get the whole key as id.
    """
    labels = source.labels
    for group in labels.row_groups:
        for row in labels.read_row_group(group, columns=[*KEY, "meta", *CARRIED]).to_pylist():
            key = "{id}/{chunk}/{sample}".format(**row)
            name = key if row["chunk"] or row["sample"] else row["id"]
            meta = json.loads(row["meta"]) if row["meta"] else {}
            own = {column: row[column] for column in CARRIED if row[column] is not None}
            columns = meta | own | {"id": name}
            yield Record(id=name, source=source.name, columns=columns, parent_id=key)
