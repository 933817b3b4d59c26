"""Inputs to records. A bad record becomes a reject; only a bad file is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.labeling.inputs.file_formats import read_items
from labeler.labeling.inputs.find_inputs import LABEL_SET, SourceFile, find_files
from labeler.labeling.inputs.locations import content_digest, named_errors, opened, shown
from schemas import LabelSet, open_label_set
from schemas.fingerprint import sha256_json

__all__ = [
    "Record",
    "Reject",
    "SourceFile",
    "file_digests",
    "find_files",
    "parent_sets",
    "read_records",
]

KEY = ("id", "chunk", "sample")
CARRIED = ("prompt", "generation", "input_ids", "spans", "student_input_ids", "student_spans")
"""Columns of a label set's row that a record made from it has too."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One input record: its default id (`relative path:number`), its file, and its columns.

    Where the input is a label set, `parent_id` is the key of the row that the record was.
    """

    id: str
    source: str
    columns: dict[str, Any]
    parent_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """What could not be labeled, and why; ends up in `journal/*.rejects.parquet`."""

    id: str
    source: str | None
    reason: str
    chunk: int | None = None
    sample: int | None = None


def read_records(file: SourceFile) -> Iterator[Record | Reject]:
    """Read one input, record by record, in order and with bounded memory.

    Raises:
        SoftshardsError: the file as a whole cannot be read.
    """
    if file.kind == LABEL_SET:
        yield from _label_set_rows(file)
        return
    first = 0
    for path in file.paths:
        where = file.name if file.held else shown(file.fs, path)
        hint = "is the file complete, and what its name says?"
        number = -1
        with named_errors(file.fs, where, hint), opened(file.fs, path, file.kind) as stream:
            for number, item in read_items(stream, file.kind):
                name = f"{file.name}:{first + number}"
                if isinstance(item, dict):
                    yield Record(id=name, source=file.name, columns=item)
                else:
                    yield Reject(id=name, source=file.name, reason=item)
        first += number + 1


def _label_set_rows(file: SourceFile) -> Iterator[Record]:
    """Rows of a label set, verified, as records that are tokenized already.

    A row is known by its own id where that can be, otherwise by its whole key.
    """
    labels = open_label_set(file.paths[0])
    for group in labels.row_groups:
        for row in labels.read_row_group(group, columns=[*KEY, "meta", *CARRIED]).to_pylist():
            key = "{id}/{chunk}/{sample}".format(**row)
            name = key if row["chunk"] or row["sample"] else row["id"]
            meta = json.loads(row["meta"]) if row["meta"] else {}
            own = {column: row[column] for column in CARRIED if row[column] is not None}
            columns = meta | own | {"id": name}
            yield Record(id=name, source=file.name, columns=columns, parent_id=key)


def file_digests(files: Sequence[SourceFile]) -> dict[str, Any]:
    """What identifies each input's content, by name: what a resumed run compares.

    SHA-256 of a local file (for a dataset: of those of its files), what its store says of a remote
    one, a label set's digest of its manifest, a view's of itself.

    Raises:
        SoftshardsError: a file cannot be read.
    """
    return {file.name: _digest(file) for file in files}


def _digest(file: SourceFile) -> str:
    if file.kind == LABEL_SET:
        return _set_digest(open_label_set(file.paths[0]))
    with named_errors(file.fs, file.name, "check that it is still there"):
        digests = [content_digest(file.fs, path) for path in file.paths]
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def _set_digest(labels: LabelSet) -> str:
    """A set's digest of its manifest, or a view's of itself: it names the bytes of its rows."""
    return labels.manifest.self_digest if labels.view is None else labels.view.self_digest


def parent_sets(files: Sequence[SourceFile]) -> list[dict[str, Any]]:
    """Facts of the label sets among the inputs, for the lineage of what is made from them.

    Returns:
        For each: `name`, `self_digest` of its manifest, `identity_digest`, `teacher`, digests of
        its teacher's `weights` and `tokenizer`, `mode`, and the `ancestry` that it has itself; of a
        view of one also `view`, how it was made.
    """
    return [_facts(file.name, Path(file.paths[0])) for file in files if file.kind == LABEL_SET]


def _facts(name: str, path: Path) -> dict[str, Any]:
    labels = open_label_set(path)
    manifest = labels.manifest
    facts: dict[str, Any] = {
        "name": name,
        "self_digest": manifest.self_digest,
        "identity_digest": manifest.identity_digest,
        "teacher": manifest.provenance.get("teacher"),
        "weights": manifest.identity.weights,
        "tokenizer": manifest.identity.tokenizer,
        "mode": manifest.identity.mode,
        "ancestry": manifest.provenance.get("parents", []),
    }
    return facts if labels.view is None else facts | {"view": labels.view.made}
