"""What must hold for every row of a label set, checked over whole row groups at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow import KEY_COLUMNS, SPAN_KINDS, row_schema
from schemas.codec import PAD_ID, DecodedLabels, decode
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_file
from schemas.journal import entry_path, read_entry, rejects_path
from schemas.labelset import LabelSet
from schemas.plan import open_plan

HALF_STEP = 2.0**-11
"""Relative rounding error of float16: a logprob x is stored as x (1 +- 2^-11)."""


def validate_label_set(labels: LabelSet) -> Iterator[str]:
    """Read every row group, verified, and yield one sentence a problem found.

    Checked: plan, journal, hashes, schema, counts, all of `validate_table`, keys that occur
    twice, files in `shards/` that the index does not name, and the totals.
    """
    seen: set[tuple[Any, ...]] = set()
    for group in labels.row_groups:
        where = f"{group.shard}, row group {group.index}"
        try:
            table = labels.read_row_group(group)
        except (LabelSetError, pa.ArrowException, OSError) as error:
            yield f"{where}: {error}"
            continue
        identity = labels.manifest.identity
        for problem in validate_table(table, vocab_size=identity.vocab_size, k=identity.k):
            yield f"{where}: {problem}"
        if table.num_rows != group.rows:
            yield f"{where}: {table.num_rows} rows, the index says {group.rows}"
        for key in zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True):
            if key in seen:
                yield f"{where}: row {_name(key)} occurs twice"
            seen.add(key)
    yield from _side_files(labels)
    yield from _stray_shards(labels)
    totals = labels.manifest.totals
    if totals and (totals.rows, totals.labels) != (labels.rows, labels.labels):
        yield (
            f"the manifest counts {totals.rows} rows and {totals.labels} labels, "
            f"the index {labels.rows} and {labels.labels}"
        )


def _side_files(labels: LabelSet) -> Iterator[str]:
    """Plan and journal: a run that goes on, or appends, would believe them."""
    try:
        open_plan(labels.path, labels.manifest.plan)
    except LabelSetError as error:
        yield str(error)
    for unit in range(labels.manifest.planned_units):
        try:
            entry = read_entry(labels.path, unit)
        except LabelSetError as error:
            yield str(error)
            continue
        rejects = rejects_path(labels.path, unit)
        if entry is None:
            if labels.manifest.status == "complete":
                yield f"{entry_path(labels.path, unit)}: the journal entry is missing"
        elif not rejects.is_file() or sha256_file(rejects) != entry.rejects_sha256:
            yield f"{rejects}: the rejects are missing or altered"


def _stray_shards(labels: LabelSet) -> Iterator[str]:
    known = {labels.path / shard for shard in labels.shards}
    for path in sorted((labels.path / "shards").glob("*.parquet")):
        if path not in known and labels.manifest.status == "complete":
            yield f"{Path('shards') / path.name}: not in the index (a raw glob would read it)"


def validate_table(table: pa.Table, *, vocab_size: int, k: int) -> Iterator[str]:
    """Yield one sentence a broken invariant of docs/format.md, with the first row it breaks in.

    Args:
        table: rows of a shard, all columns.
        vocab_size: number of real token ids.
        k: the largest number of top logprobs a position may have.
    """
    expected = row_schema(vocab_size)
    if not table.schema.remove_metadata().equals(expected):
        yield "the schema is not that of format version 1"
        return
    try:
        decoded = decode(table)
    except ValueError as error:
        yield str(error)
        return
    keys = list(zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True))
    counts = np.diff(decoded.offsets)
    stored = table["n_labels"].to_numpy()
    yield from _rows("n_labels is not the number of labels", counts != stored, keys)
    lengths = _lengths(table["input_ids"])
    yield from _rows(
        "n_tokens is not the number of tokens", lengths != table["n_tokens"].to_numpy(), keys
    )
    outside = [
        bool(ids) and not 0 <= min(ids) <= max(ids) < vocab_size
        for ids in table["input_ids"].to_pylist()
    ]
    yield from _rows("an input id is outside the tokenizer", np.array(outside, bool), keys)
    spans = table["spans"].to_pylist()
    broken = [span_problem(s, int(n), int(c)) for s, n, c in zip(spans, lengths, counts)]
    for key, problem in zip(keys, broken, strict=True):
        if problem:
            yield f"row {_name(key)}: {problem}"
            return
    yield from _student_context(table, keys)
    yield from _label_values(table, decoded, keys, vocab_size, k)


def span_problem(spans: list[dict[str, Any]], n_tokens: int, n_labels: int) -> str | None:
    """Say what is wrong with a row's spans: sorted, disjoint, 1 <= start < stop <= n_tokens."""
    last = 1
    for span in spans:
        if not last <= span["start"] < span["stop"] <= n_tokens:
            where = f"[{span['start']}, {span['stop']})"
            return f"span {where} is empty, out of order or outside 1..{n_tokens}"
        if span["kind"] not in SPAN_KINDS:
            return f"unknown span kind {span['kind']!r}"
        last = span["stop"]
    total = sum(span["stop"] - span["start"] for span in spans)
    return None if total == n_labels else f"spans cover {total} positions, labels {n_labels}"


def _student_context(table: pa.Table, keys: list[tuple[Any, ...]]) -> Iterator[str]:
    columns = (table[n].to_pylist() for n in ("spans", "student_input_ids", "student_spans"))
    for key, spans, ids, student in zip(keys, *columns, strict=True):
        if (ids is None) != (student is None):
            yield f"row {_name(key)}: student_input_ids and student_spans go together"
        elif ids is not None:
            ours = [s["stop"] - s["start"] for s in student]
            problem = span_problem(student, len(ids), sum(ours))
            if problem or ours != [s["stop"] - s["start"] for s in spans]:
                yield f"row {_name(key)}: {problem or 'student_spans differ in length from spans'}"


def _label_values(
    table: pa.Table, decoded: DecodedLabels, keys: list[tuple[Any, ...]], vocab_size: int, k: int
) -> Iterator[str]:
    labels, offsets = decoded.labels, decoded.offsets
    rows = np.repeat(np.arange(len(keys)), np.diff(offsets))

    def broken(what: str, positions: Any) -> Iterator[str]:
        if positions.any():
            first = int(np.argmax(positions))
            row = int(rows[first])
            yield f"row {_name(keys[row])}, label {first - int(offsets[row])}: {what}"

    ids, logs = labels.topk_ids, labels.topk_logprobs.astype(np.float64)
    real = ids != PAD_ID
    if ids.shape[1] > k:
        yield f"{ids.shape[1]} ids a position, more than k = {k}"
    yield from broken("token id outside the tokenizer", ((ids >= vocab_size) & real).any(axis=1))
    ordered = np.sort(ids, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD_ID)
    yield from broken("an id occurs twice", twice.any(axis=1))
    pairs = np.where(real[:, 1:], logs[:, 1:] > logs[:, :-1], False)
    yield from broken("logprobs are not in descending order", pairs.any(axis=1))
    tail, token = labels.tail_logprob.astype(np.float64), labels.token_logprob.astype(np.float64)
    above = (logs > 0).any(axis=1) | (tail > 0) | (token > 0)
    yield from broken("a logprob is above zero", above)
    mass = np.exp(logs).sum(axis=1) + np.exp(tail)
    bound = 1e-3 + 2 * HALF_STEP * (np.exp(logs) * np.abs(np.where(real, logs, 0))).sum(axis=1)
    yield from broken("top-k and tail do not sum to one", np.abs(mass - 1) > bound)
    tokens = _actual_tokens(table)
    hit = (ids == tokens[:, None]) & real
    stored = np.where(hit, logs, 0.0).sum(axis=1)
    tolerance = 1e-3 + HALF_STEP * np.abs(token)
    yield from broken(
        "token_logprob is not that of the actual token in the top-k",
        hit.any(axis=1) & (np.abs(stored - token) > tolerance),
    )
    smallest = np.where(real, logs, np.inf).min(axis=1, initial=np.inf)
    too_likely = ~hit.any(axis=1) & (token > smallest + tolerance)
    yield from broken("the actual token is outside the top-k but more likely than it", too_likely)
    outside = ~hit.any(axis=1) & (token > tail + 2e-3 + 2 * HALF_STEP * np.abs(token))
    yield from broken("the actual token outside the top-k is likelier than the tail", outside)


def _actual_tokens(table: pa.Table) -> NDArray[np.int32]:
    """The actual token at each labeled position, in label order."""
    parts: list[NDArray[np.int32]] = []
    rows = zip(table["input_ids"], table["spans"].to_pylist(), strict=True)
    for ids, spans in rows:
        values = ids.values.to_numpy()
        parts.extend(values[s["start"] : s["stop"]] for s in spans)
    return np.concatenate([*parts, np.empty(0, np.int32)])


def _rows(what: str, wrong: NDArray[np.bool_], keys: list[tuple[Any, ...]]) -> Iterator[str]:
    if wrong.any():
        yield f"row {_name(keys[int(np.argmax(wrong))])}: {what}"


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    arrays = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([*arrays, np.empty(0, np.int64)])


def _name(key: tuple[Any, ...]) -> str:
    return f"{key[0]} (chunk {key[1]}, sample {key[2]})"
