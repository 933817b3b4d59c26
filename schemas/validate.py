"""Check a label set as a whole, row group by row group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.arrow import KEY_COLUMNS
from schemas.errors import LabelSetError
from schemas.findings import Finding
from schemas.fingerprint import sha256_file
from schemas.invariants import Key, row_name, validate_table
from schemas.journal import entry_path, read_entry, rejects_path
from schemas.labelset import LabelSet
from schemas.plan import open_plan
from schemas.row_group import RowGroup

DUPLICATES_NAMED = 5
"""Duplicates that findings name; the others are only counted."""


def validate_label_set(labels: LabelSet) -> Iterator[Finding]:
    """Yield the problems of a label set: the findings of `examine` without its notes."""
    return (finding for finding in examine(labels) if not finding.note)


def examine(
    labels: LabelSet, *, done: Callable[[RowGroup], object] | None = None
) -> Iterator[Finding]:
    """Read every row group, verified, and yield the findings.

    Checks hashes, schema, counts, everything in `validate_table` and keys that occur twice; of a
    set, as opposed to a view, also the plan, the journal, the totals and files in `shards/` that
    the index does not name. Rows with equal tokens under different keys are a note. One row group
    is in memory at a time, and 16 bytes per row of the set (32 while they are sorted).

    Args:
        labels: an opened label set.
        done: called after each row group.
    """
    rows = _Rows()
    manifest = labels.manifest
    identity = manifest.identity
    for number, group in enumerate(labels.row_groups):
        where = f"{group.shard}, row group {group.index}"
        try:
            table = labels.read_row_group(group)
        except (LabelSetError, pa.ArrowException, OSError) as error:
            what, hint = getattr(error, "what", str(error)), getattr(error, "hint", None)
            yield Finding(kind="damage", where=where, what=what, hint=hint)
            continue
        found = list(
            validate_table(
                table,
                vocab_size=identity.vocab_size,
                k=identity.k,
                codec=manifest.codec,
                draws=identity.draws,
            )
        )
        yield from (finding.inside(where) for finding in found)
        if any(finding.kind == "schema" for finding in found):
            continue
        n_labels, n_tokens = (int(table[n].to_numpy().sum()) for n in ("n_labels", "n_tokens"))
        if (table.num_rows, n_labels, n_tokens) != (group.rows, group.labels, group.tokens):
            source = "index" if group.kept is None else "view"
            yield Finding(
                kind="count",
                where=where,
                what=f"{table.num_rows} rows, {n_labels} labels and {n_tokens} tokens; the "
                f"{source} says {group.rows}, {group.labels} and {group.tokens}",
            )
        rows.add(number, table)
        if done is not None:
            done(group)
    yield from rows.duplicates(labels)
    if labels.view is None:
        yield from _examine_set_files(labels)


def _examine_set_files(labels: LabelSet) -> Iterator[Finding]:
    """Check the files of a set that its views do not cover: plan, journal, totals, stray shards."""
    yield from examine_other_files(labels)
    totals = labels.manifest.totals
    if totals and (totals.rows, totals.labels) != (labels.rows, labels.labels):
        what = (
            f"the manifest says {totals.rows} rows and {totals.labels} labels, "
            f"the index {labels.rows} and {labels.labels}"
        )
        yield Finding(kind="count", where="manifest.json", what=what)


class _Rows:
    """Hashes of the keys and of the tokens of all rows, to find duplicates."""

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._keys: list[NDArray[np.uint64]] = []
        self._contents: list[NDArray[np.uint64]] = []

    def add(self, number: int, table: pa.Table) -> None:
        keys = zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True)
        tokens = (ids.values.to_numpy().tobytes() for ids in table["input_ids"])
        self._groups.append(number)
        self._keys.append(_hashes(repr(key).encode() for key in keys))
        self._contents.append(_hashes(tokens))

    def duplicates(self, labels: LabelSet) -> Iterator[Finding]:
        """Yield rows with equal keys (a problem), and rows with equal tokens (a note)."""
        pairs = _pairs(self._keys)
        names = self._names(labels, pairs[:DUPLICATES_NAMED])
        for key, other in names:
            if key == other:  # hashes of different keys may collide
                yield Finding(
                    kind="duplicate", where=row_name(key), what=f"the key {key} occurs twice"
                )
        if len(pairs) > DUPLICATES_NAMED:
            yield Finding(kind="duplicate", what=f"{len(pairs)} rows have a key that occurs twice")
        same = _pairs(self._contents)
        examples = [f"{row_name(a)} and {row_name(b)}" for a, b in self._names(labels, same[:1])]
        if same:
            what = f"{len(same)} rows have the same tokens as another row, first {examples[0]}"
            yield Finding(kind="same-tokens", what=what, note=True)

    def _names(self, labels: LabelSet, pairs: list[tuple[int, int]]) -> list[tuple[Key, Key]]:
        starts = np.cumsum([0, *map(len, self._keys)])

        def key(place: int) -> Key:
            index = int(np.searchsorted(starts, place, side="right")) - 1
            group = labels.row_groups[self._groups[index]]
            table = labels.read_row_group(group, KEY_COLUMNS, verify=False)
            row = table.slice(place - int(starts[index]), 1).to_pylist()[0]
            return row["id"], row["chunk"], row["sample"]

        return [(key(first), key(second)) for first, second in pairs]


def _hashes(values: Iterator[bytes]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in values)
    return np.frombuffer(digests, np.uint64)


def _pairs(parts: list[NDArray[np.uint64]]) -> list[tuple[int, int]]:
    """Return pairs of neighboring places with equal hashes."""
    hashes = np.concatenate([*parts, np.empty(0, np.uint64)])
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    return [(int(order[i]), int(order[i + 1])) for i in same]


def examine_other_files(labels: LabelSet) -> Iterator[Finding]:
    """Yield problems of the files beside the shards, and shards that the index does not name."""
    yield from _side_files(labels)
    yield from _stray_shards(labels)


def _side_files(labels: LabelSet) -> Iterator[Finding]:
    """Check plan and journal, which a resumed run or an append relies on."""
    try:
        if labels.manifest.plan is not None:
            open_plan(labels.path, labels.manifest.plan)
    except LabelSetError as error:
        yield Finding(kind="plan", where=str(error.path), what=error.what, hint=error.hint)
    for unit in range(labels.manifest.planned_units):
        try:
            entry = read_entry(labels.path, unit)
        except LabelSetError as error:
            yield Finding(kind="journal", where=str(error.path), what=error.what, hint=error.hint)
            continue
        rejects = rejects_path(labels.path, unit)
        if entry is None:
            if labels.manifest.status == "complete":
                where = str(entry_path(labels.path, unit))
                yield Finding(kind="journal", where=where, what="the journal entry is missing")
        elif not rejects.is_file() or sha256_file(rejects) != entry.rejects_sha256:
            what = "the rejects are missing or altered"
            yield Finding(kind="journal", where=str(rejects), what=what)


def _stray_shards(labels: LabelSet) -> Iterator[Finding]:
    known = {labels.path / shard for shard in labels.shards}
    for path in sorted((labels.path / "shards").glob("*.parquet")):
        if path not in known and labels.manifest.status == "complete":
            what = "not in the index (a raw glob would read it)"
            yield Finding(kind="stray", where=str(Path("shards") / path.name), what=what)
