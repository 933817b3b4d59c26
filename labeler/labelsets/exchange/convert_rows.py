"""Foreign rows to the rows of a label set, checked one by one; what breaks a rule is a reject."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from labeler.labelsets.exchange.parse_row import Foreign, checked, labels_of, read_foreign
from labeler.labelsets.exchange.position_check import Evidence
from labeler.labelsets.exchange.read_rows import BadRow, Row, plain, read_rows
from schemas import Labels, bucketed_entropy, encode
from schemas.arrow import row_schema
from schemas.invariants import validate_table

TEXTS = ("parent_id", "prompt", "generation", "finish_reason")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file is to be understood.

    Attributes:
        form: its format; shift: see `read_foreign`.
        kind: of the spans, where rows do not say.
        vocab_size: number of token ids.
    """

    form: str
    shift: int
    kind: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A row that is good: its arrays, its labels and its other columns."""

    foreign: Foreign
    labels: Labels
    columns: dict[str, Any]


@dataclass
class Counts:
    """What was met.

    Attributes:
        records: rows read, good or not; labels: of the good ones.
        k: most ids a position; longest: most tokens a row.
        unknown_tokens: labels whose actual token's logprob is not known.
        own_tail: rows whose file says the tail; derived_tail: rows with labels where it does not.
        own_entropy, derived_entropy: likewise.
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


def names_of(files: Sequence[Path], inputs: Sequence[Path]) -> list[str]:
    """What rows say of each file: its path relative to the folder that was named, or its name."""
    folders = [path for path in inputs if path.is_dir()]
    names = []
    for path in files:
        inside = [folder for folder in folders if path.is_relative_to(folder)]
        names.append(str(path.relative_to(inside[0])) if inside else path.name)
    return names if len(set(names)) == len(names) else [str(path) for path in files]


def take(path: Path, name: str, reading: Reading, counts: Counts) -> Iterator[Taken | dict]:
    """The rows of a file in order: good, or as a reject.

    Raises:
        SoftshardsError: the file as a whole is damaged.
    """
    for number, row in read_rows(path):
        counts.records += 1
        key = {"id": f"{name}:{number}", "chunk": 0, "sample": 0, "source": name}
        try:
            if isinstance(row, str):
                raise BadRow(row)
            key |= _key(row) if reading.form == "jsonl" else {}
            foreign = checked(read_foreign(row, reading.form, reading.shift), reading.vocab_size)
            if not counts.evidence.enough:
                counts.evidence.add(foreign, reading.vocab_size)
            labels, unknown = labels_of(foreign, reading.vocab_size)
            columns = key | _columns(row, foreign, labels, unknown, reading)
        except BadRow as error:
            yield key | {"reason": str(error)}
            continue
        _count(counts, foreign, unknown)
        yield Taken(foreign=foreign, labels=labels, columns=columns)


def _count(counts: Counts, row: Foreign, unknown: int) -> None:
    n = len(row.positions)
    counts.labels += n
    counts.k = max(counts.k, row.ids.shape[1])
    counts.longest = max(counts.longest, len(row.input_ids))
    counts.unknown_tokens += unknown
    if n:
        counts.own_tail += row.tail is not None
        counts.derived_tail += row.tail is None
        counts.own_entropy += row.entropy is not None
        counts.derived_entropy += row.entropy is None


def _key(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in (("id", str), ("chunk", int), ("sample", int), ("source", str)):
        value = plain(row.get(name))
        if value is not None:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise BadRow(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
            found[name] = value
    return found


def _columns(
    row: Row, foreign: Foreign, labels: Labels, unknown: int, reading: Reading
) -> dict[str, Any]:
    """The columns of a row that are neither key nor label arrays, as Python values."""
    spans = _spans(foreign, reading.kind) if foreign.spans is None else foreign.spans
    entropy = bucketed_entropy(labels) if labels.entropy is None else labels.entropy
    n = len(labels)
    columns: dict[str, Any] = {
        "n_tokens": len(foreign.input_ids),
        "n_labels": n,
        "mean_nll": _mean(-labels.token_logprob) if n and not unknown else None,
        "mean_entropy": _mean(entropy) if n else None,
        "coverage": _mean(np.exp(labels.topk_logprobs.astype(np.float64)).sum(1)) if n else None,
        "input_ids": foreign.input_ids.tolist(),
        "spans": spans,
    }
    if reading.form != "jsonl":
        return columns
    for name in TEXTS:
        value = plain(row.get(name))
        if value is not None and not isinstance(value, str):
            raise BadRow(f"{name} is a {type(value).__name__}, not a text")
        columns[name] = value
    meta = plain(row.get("meta"))
    columns["meta"] = meta if meta is None or isinstance(meta, str) else json.dumps(meta)
    for name in ("student_input_ids", "student_spans"):
        columns[name] = plain(row.get(name))
    return columns


def _mean(values: Any) -> float:
    return float(np.mean(values, dtype=np.float64))


def _spans(row: Foreign, kind: str) -> list[dict[str, Any]]:
    """Runs of neighboring positions."""
    cuts = np.flatnonzero(np.diff(row.positions) != 1) + 1
    runs = np.split(row.positions, cuts) if len(row.positions) else []
    return [{"start": int(r[0]), "stop": int(r[-1]) + 1, "kind": kind} for r in runs]


def table_of(rows: Sequence[Taken], vocab_size: int) -> pa.Table:
    """Rows as a row group of a label set.

    Raises:
        BadRow: a column is of a type that the format does not have.
    """
    labels = encode([row.labels for row in rows], vocab_size)
    try:
        arrays = [
            labels[f.name].cast(f.type)
            if f.name in labels
            else pa.array([row.columns.get(f.name) for row in rows], f.type)
            for f in row_schema(vocab_size)
        ]
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise BadRow(str(error).splitlines()[0]) from error
    return pa.Table.from_arrays(arrays, schema=row_schema(vocab_size))


def problem_of(rows: Sequence[Taken], vocab_size: int) -> str | None:
    """The first invariant of docs/format.md that these rows break, or None."""
    try:
        table = table_of(rows, vocab_size)
    except BadRow as error:
        return str(error)
    k = max(row.labels.topk_ids.shape[1] for row in rows)
    found = next((f for f in validate_table(table, vocab_size=vocab_size, k=k) if not f.note), None)
    return None if found is None else found.what
