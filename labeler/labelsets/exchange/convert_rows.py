"""Convert the rows of another tool to rows of a label set; a row that breaks a rule is rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labelsets.exchange.check_row import check_row, make_labels
from labeler.labelsets.exchange.parse_row import ParsedRow, parse_row
from labeler.labelsets.exchange.position_check import Evidence
from labeler.labelsets.exchange.read_rows import BadRow, Row, python_value, read_rows
from schemas.arrow import row_schema
from schemas.codec import Labels, bucketed_entropy, encode
from schemas.invariants import validate_table
from schemas.labeled_spans import SpanRecord

Value = TypeVar("Value", str, int)

TEXT_COLUMNS = ("parent_id", "prompt", "generation", "finish_reason")


class RowKey(TypedDict):
    """The columns that identify a row."""

    id: str
    chunk: int
    sample: int
    source: str


class Reject(RowKey):
    """A row that was rejected, as in `schemas.arrow.REJECT_SCHEMA`."""

    reason: str


def rejected(key: RowKey, reason: str) -> Reject:
    """Return the row of this key as a reject."""
    return {**key, "reason": reason}


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """The layout of a file's rows.

    Attributes:
        format: `distillkit`, `axolotl` or `jsonl`.
        shift: as in `parse_row`.
        kind: kind of the spans, for rows that name none.
        vocab_size: number of token ids.
    """

    format: str
    shift: int
    kind: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class ConvertedRow:
    """A good row.

    Attributes:
        parsed: its arrays.
        labels: its labels.
        key: its identifying columns.
        columns: its other columns, without labels, as Python values.
    """

    parsed: ParsedRow
    labels: Labels
    key: RowKey
    columns: dict[str, Any]


@dataclass
class ImportCounts:
    """Counts over the rows of an import.

    Attributes:
        records: rows read, good or bad.
        labels: labels of the good rows.
        k: most ids per label.
        longest: most tokens per row.
        unknown_tokens: labels whose actual token's logprob is unknown.
        own_tail: labeled rows whose file records the tail.
        derived_tail: labeled rows whose tail is derived.
        own_entropy: labeled rows whose file records the entropy.
        derived_entropy: labeled rows whose entropy is derived.
        evidence: of the alignment.
    """

    records: int = 0
    labels: int = 0
    k: int = 0
    longest: int = 0
    unknown_tokens: int = 0
    own_tail: int = 0
    derived_tail: int = 0
    own_entropy: int = 0
    derived_entropy: int = 0
    evidence: Evidence = field(default_factory=Evidence)

    def add(self, row: ParsedRow, unknown_tokens: int) -> None:
        """Count a good row."""
        n = len(row.positions)
        self.labels += n
        self.k = max(self.k, row.ids.shape[1])
        self.longest = max(self.longest, len(row.input_ids))
        self.unknown_tokens += unknown_tokens
        if n:
            self.own_tail += row.tail is not None
            self.derived_tail += row.tail is None
            self.own_entropy += row.entropy is not None
            self.derived_entropy += row.entropy is None


def source_names(files: Sequence[Path], inputs: Sequence[Path]) -> list[str]:
    """Return the source that rows record of each file.

    It is the path relative to the folder that was named, or the file's name; the full paths if
    two files would share one.
    """
    folders = [path for path in inputs if path.is_dir()]
    names = []
    for path in files:
        above = [folder for folder in folders if path.is_relative_to(folder)]
        names.append(str(path.relative_to(above[0])) if above else path.name)
    return names if len(set(names)) == len(names) else [str(path) for path in files]


def convert_rows(
    path: Path, name: str, layout: RowLayout, counts: ImportCounts
) -> Iterator[ConvertedRow | Reject]:
    """Yield the rows of a file in order, converted or rejected.

    Args:
        path: the file.
        name: the source that rows record.
        layout: the layout of its rows.
        counts: updated with each row.

    Raises:
        SoftshardsError: the file as a whole is damaged.
    """
    for number, row in read_rows(path):
        counts.records += 1
        key = RowKey(id=f"{name}:{number}", chunk=0, sample=0, source=name)
        try:
            if isinstance(row, str):
                raise BadRow(row)
            if layout.format == "jsonl":
                key = _key(row, key)
            parsed = parse_row(row, layout.format, layout.shift)
            parsed = check_row(parsed, layout.vocab_size)
            if not counts.evidence.suffices:
                counts.evidence.add(parsed, layout.vocab_size)
            labels, unknown_tokens = make_labels(parsed, layout.vocab_size)
            columns = _columns(row, parsed, labels, unknown_tokens, layout)
        except BadRow as error:
            yield rejected(key, str(error))
            continue
        counts.add(parsed, unknown_tokens)
        yield ConvertedRow(parsed=parsed, labels=labels, key=key, columns=columns)


def _key(row: Row, default: RowKey) -> RowKey:
    """Return the row's own key; `default` stands in for missing columns."""
    id, source = (_optional(row, name, str) for name in ("id", "source"))
    chunk, sample = (_optional(row, name, int) for name in ("chunk", "sample"))
    return RowKey(
        id=default["id"] if id is None else id,
        chunk=default["chunk"] if chunk is None else chunk,
        sample=default["sample"] if sample is None else sample,
        source=default["source"] if source is None else source,
    )


def _optional(row: Row, name: str, kind: type[Value]) -> Value | None:
    value = python_value(row, name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadRow(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _columns(
    row: Row, parsed: ParsedRow, labels: Labels, unknown_tokens: int, layout: RowLayout
) -> dict[str, Any]:
    """Return the columns of a row that are neither key nor label arrays, as Python values."""
    spans = _make_spans(parsed, layout.kind) if parsed.spans is None else parsed.spans
    entropy = bucketed_entropy(labels) if labels.entropy is None else labels.entropy
    coverage = np.exp(labels.topk_logprobs.astype(np.float64)).sum(1)
    n = len(labels)
    columns: dict[str, Any] = {
        "n_tokens": len(parsed.input_ids),
        "n_labels": n,
        "mean_nll": _mean(-labels.token_logprob) if n and not unknown_tokens else None,
        "mean_entropy": _mean(entropy) if n else None,
        "coverage": _mean(coverage) if n else None,
        "input_ids": parsed.input_ids.tolist(),
        "spans": spans,
    }
    if layout.format != "jsonl":
        return columns
    columns |= {name: _optional(row, name, str) for name in TEXT_COLUMNS}
    meta = python_value(row, "meta")
    columns["meta"] = meta if meta is None or isinstance(meta, str) else json.dumps(meta)
    for name in ("student_input_ids", "student_spans"):
        columns[name] = python_value(row, name)
    return columns


def _mean(values: NDArray[np.floating[Any]]) -> float:
    return float(np.mean(values, dtype=np.float64))


def _make_spans(row: ParsedRow, kind: str) -> list[SpanRecord]:
    """Return runs of neighboring positions as spans."""
    cuts = np.flatnonzero(np.diff(row.positions) != 1) + 1
    runs = np.split(row.positions, cuts) if len(row.positions) else []
    return [{"start": int(r[0]), "stop": int(r[-1]) + 1, "kind": kind} for r in runs]


def make_table(rows: Sequence[ConvertedRow], vocab_size: int) -> pa.Table:
    """Return rows as a row group of a label set.

    Raises:
        BadRow: a column is of a type that the format does not have.
    """
    labels = encode([row.labels for row in rows], vocab_size)
    columns = [{**row.key, **row.columns} for row in rows]
    try:
        arrays = [
            labels[field.name].cast(field.type)
            if field.name in labels
            else pa.array([values.get(field.name) for values in columns], field.type)
            for field in row_schema(vocab_size)
        ]
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise BadRow(str(error).splitlines()[0]) from error
    return pa.Table.from_arrays(arrays, schema=row_schema(vocab_size))


def first_violation(rows: Sequence[ConvertedRow], vocab_size: int) -> str | None:
    """Return the first invariant of docs/format.md that these rows break, or None."""
    try:
        table = make_table(rows, vocab_size)
    except BadRow as error:
        return str(error)
    k = max(row.labels.topk_ids.shape[1] for row in rows)
    findings = validate_table(table, vocab_size=vocab_size, k=k)
    return next((finding.what for finding in findings if not finding.note), None)
