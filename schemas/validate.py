"""Check a label set as a whole, row group by row group."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import KEY_COLUMNS, REJECT_SCHEMA
from schemas.arrow_alloc import as_numpy
from schemas.asked_ids import asked_count
from schemas.errors import LabelSetError, first_line
from schemas.file_names import JOURNAL, hidden_name
from schemas.findings import Finding
from schemas.fingerprint import sha256_bytes, sha256_file
from schemas.hidden_checks import StateChecks
from schemas.hidden_reader import content_digest
from schemas.index import RowLengths, read_lengths
from schemas.invariants import Key, row_name, validate_table
from schemas.journal import (
    ByteRange,
    entry_path,
    journaled_units,
    read_entry,
    rejects_path,
    unit_rejects,
)
from schemas.labelset import LabelSet
from schemas.ledger import LEDGER, LedgerSums, is_ledger_of
from schemas.manifest import FileDigest, Manifest
from schemas.object_store import is_web, list_files
from schemas.parquet_sizes import checked_parquet
from schemas.plan import open_plan
from schemas.remote import FETCH_THREADS, Remote
from schemas.row_group import RowGroup
from schemas.row_lengths import count_lengths, lengths_to_text
from schemas.set_files import extra_files, is_set_file
from schemas.set_paths import set_file
from schemas.store_errors import StoreError

DUPLICATES_NAMED = 5
"""Duplicates that findings name; the others are only counted."""


def validate_label_set(labels: LabelSet) -> Iterator[Finding]:
    """Yield the problems of a label set: the findings of `examine` without its notes."""
    return (finding for finding in examine(labels) if not finding.note)


def validate_rows(table: pa.Table, manifest: Manifest) -> Iterator[Finding]:
    """Yield what `validate_table` finds in rows of the set with this manifest."""
    identity = manifest.identity
    return validate_table(
        table,
        vocab_size=identity.vocab_size,
        k=identity.k,
        codec=manifest.rounding_codec,
        draws=identity.draws,
        temperatures=identity.label_temperatures or (),
        asked=asked_count(identity.ids_from),
        keep=identity.keep_positions,
    )


def examine(
    labels: LabelSet, *, done: Callable[[RowGroup], object] | None = None
) -> Iterator[Finding]:
    """Read every row group, verified, and yield the findings.

    Checks hashes, schema, counts, everything in `validate_table` and keys that occur twice; of a
    set, as opposed to a view, also the plan, the journal, the ledger, the totals and files that
    the set does not declare. Rows with equal tokens under different keys are a note. One row group
    is in memory at a time (of a set behind a URL also the stored bytes of the next ones), and 16
    bytes per row of the set (32 while they are sorted).

    Args:
        labels: an opened label set.
        done: called after each row group.
    """
    rows = _Rows()
    manifest = labels.manifest
    states = StateChecks(labels)
    yield from states.open_files()
    lengths = _index_lengths(labels)
    if isinstance(lengths, Finding):
        yield lengths
    for number, (group, read) in enumerate(_read_ahead(labels)):
        where = f"{group.shard}, row group {group.index}"
        try:
            table = read()
        except StoreError:  # nothing is known about the set
            raise
        except (LabelSetError, pa.ArrowException, OSError) as error:
            what, hint = getattr(error, "what", str(error)), getattr(error, "hint", None)
            yield Finding(kind="damage", where=where, what=what, hint=hint)
            continue
        try:
            table.validate(full=True)
            found = list(validate_rows(table, manifest))
        except Exception as error:  # rows that no writer makes may break any of the checks
            what = f"the rows cannot be checked: {first_line(error)}"
            found = [Finding(kind="schema", what=what)]
        yield from (finding.inside(where) for finding in found)
        if any(finding.kind == "schema" for finding in found):
            continue
        n_labels, n_tokens = (int(pc.sum(table[n]).as_py() or 0) for n in ("n_labels", "n_tokens"))
        if (table.num_rows, n_labels, n_tokens) != (group.rows, group.labels, group.tokens):
            source = "index" if group.kept is None else "view"
            yield Finding(
                kind="count",
                where=where,
                what=f"{table.num_rows} rows, {n_labels} labels and {n_tokens} tokens; the "
                f"{source} says {group.rows}, {group.labels} and {group.tokens}",
            )
        stated = None if isinstance(lengths, Finding) else lengths.of(number)
        if stated is not None and not np.array_equal(stated, count_lengths(table)):
            yield Finding(kind="count", where=where, what="the index has other lengths of its rows")
        if states.layers:
            yield from states.examine(number, group, table)
        rows.add(number, table)
        if done is not None:
            done(group)
    yield from states.finish()
    yield from rows.duplicates(labels)
    if labels.view is None:
        yield from _examine_set_files(labels)


def _read_ahead(labels: LabelSet) -> Iterator[tuple[RowGroup, Callable[[], pa.Table]]]:
    """Yield the row groups, each with a function that returns its rows.

    Behind a URL, the bytes of the next row groups are fetched at the same time: each is a request,
    or two. They are decoded one by one, since a few bytes may expand to much.
    """
    if labels.remote is None:
        for group in labels.row_groups:
            yield group, partial(labels.read_row_group, group)
        return
    pool = ThreadPoolExecutor(FETCH_THREADS)
    started = ((group, pool.submit(labels.reader.fetch, group)) for group in labels.row_groups)

    def read(group: RowGroup, fetching: Future[bytes]) -> pa.Table:
        return labels.read_row_group(group, data=fetching.result())

    try:
        ahead = deque(islice(started, FETCH_THREADS))
        while ahead:
            group, fetching = ahead.popleft()
            yield group, partial(read, group, fetching)
            ahead.extend(islice(started, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _index_lengths(labels: LabelSet) -> RowLengths | Finding:
    try:
        return read_lengths(labels.row_groups)
    except LabelSetError as error:
        return Finding(kind="count", where=str(error.path), what=error.what)


def _examine_set_files(labels: LabelSet) -> Iterator[Finding]:
    """Check the files of a set that its views do not cover: plan, journal, totals, stray files."""
    yield from examine_other_files(labels)
    stated = labels.manifest.content_digest
    is_stated = stated is not None and labels.manifest.status == "complete"
    try:
        hidden = labels.hidden.of(labels.row_groups)
    except LabelSetError as error:
        yield Finding(kind="count", where=str(error.path), what=error.what, hint=error.hint)
        return
    if is_stated and content_digest(labels.row_groups, hidden) != stated:
        what = "the digest of the content is not that of the index"
        yield Finding(kind="count", where="manifest.json", what=what)
    totals = labels.manifest.totals
    if totals is None:
        return
    for name, found in (
        ("units", labels.manifest.planned_units),
        ("rows", labels.rows),
        ("labels", labels.labels),
        ("tokens", labels.tokens),
        ("bytes", labels.stored_bytes),
        ("hidden_bytes", labels.hidden.stored_bytes),
    ):
        total = getattr(totals, name) or 0
        if total != found:
            what = f"the manifest says {total} {name}, the index {found}"
            yield Finding(kind="count", where="manifest.json", what=what)


class _Rows:
    """Hashes of the keys and of the tokens of all rows, to find duplicates."""

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._keys: list[NDArray[np.uint64]] = []
        self._contents: list[NDArray[np.uint64]] = []

    def add(self, number: int, table: pa.Table) -> None:
        keys = zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True)
        tokens = (as_numpy(ids.values).tobytes() for ids in table["input_ids"])
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
    """Yield problems of the files beside the shards, and files that the set does not declare.

    After this, every file of a complete set is covered by a hash, or is named in a finding.

    Raises:
        StoreError: the set is behind a URL, which does not answer.
    """
    for finding in _other_files(labels):
        remote = labels.remote is not None  # and its journal was copied
        yield finding.renamed(str(labels.path), labels.place) if remote else finding


def _other_files(labels: LabelSet) -> Iterator[Finding]:
    yield from _plan_files(labels)
    yield from _journal_files(labels)
    if labels.remote is not None:
        yield from _shard_sizes(labels, labels.remote)
    if labels.manifest.status == "complete":
        yield from _undeclared_files(labels)


def _shard_sizes(labels: LabelSet, remote: Remote) -> Iterator[Finding]:
    """Check that parts in a store end where the index says; on this machine, opening them does."""
    if is_web(remote):
        return
    sizes, groups = list_files(remote), [labels.row_groups]
    with suppress(LabelSetError):  # found by their own checks
        groups.append(labels.hidden.groups)
    for group in chain.from_iterable(groups):
        file = sizes.get(group.shard)
        if group.index == 0 and file is not None and file.size != group.footer.stop:
            what = f"the file has {file.size} bytes, the index says {group.footer.stop}"
            yield Finding(kind="damage", where=group.shard, what=what)


def _plan_files(labels: LabelSet) -> Iterator[Finding]:
    """Check the plan, which a resumed run or an append relies on, and the plans' rejects."""
    manifest = labels.manifest
    try:
        if manifest.plan is not None and labels.remote is not None:
            _check_remote(labels.remote, manifest.plan)
        elif manifest.plan is not None:
            open_plan(labels.path, manifest.plan).close()
    except LabelSetError as error:
        yield Finding(kind="plan", where=str(error.path), what=error.what, hint=error.hint)
    for file in manifest.plan_rejects or ():
        try:
            path = set_file(labels.records_dir, file.path)
            if not path.is_file() or sha256_file(path) != file.sha256:
                yield Finding(kind="plan", where=file.path, what="the rejects of the plan changed")
        except (LabelSetError, OSError) as error:
            yield Finding(kind="plan", where=file.path, what=first_line(error))
    if manifest.plan is not None and manifest.plan_rejects is None:
        what = (
            "an older version made the set: no hash covers the records that the plan rejected "
            "(journal/plan.rejects.parquet)"
        )
        if manifest.status == "complete":
            yield Finding(kind="plan", what=what, note=True)


def _check_remote(remote: Remote, file: FileDigest) -> None:
    """Hash a file in a store: a plan is too large to be copied.

    Raises:
        LabelSetError: it is missing or altered.
    """
    try:
        if remote.sha256(file.path) == file.sha256:
            return
        state = "altered"
    except FileNotFoundError:
        state = "missing"
    raise LabelSetError(f"the plan is {state}", path=f"{remote.url}/{file.path}")


def _hidden_ranges(labels: LabelSet) -> dict[str, list[ByteRange]] | None:
    """Return the row groups of each hidden part; None if their index is damaged."""
    found: dict[str, list[ByteRange]] = {}
    try:
        for group in labels.hidden.of(labels.row_groups):
            found.setdefault(group.shard, []).append(group.bytes)
    except LabelSetError:  # it is a finding of its own
        return None
    return found


def _journal_files(labels: LabelSet) -> Iterator[Finding]:
    """Check the journal against the index, and the ledger against the journal."""
    manifest, path = labels.manifest, labels.records_dir
    complete = manifest.status == "complete"
    indexed: dict[str, list[ByteRange]] = {}
    lengths = _index_lengths(labels)
    for number, group in enumerate(labels.row_groups):
        stated = None if isinstance(lengths, Finding) else lengths.of(number)
        text = None if stated is None else lengths_to_text(stated)
        indexed.setdefault(group.shard, []).append(group.bytes.model_copy(update={"lengths": text}))
    hidden = _hidden_ranges(labels)
    costs: LedgerSums | None = LedgerSums()
    for unit in range(manifest.planned_units) if complete else journaled_units(path):
        where = str(entry_path(path, unit))
        try:
            entry = read_entry(path, unit)
            rejects = unit_rejects(path, unit)
        except (LabelSetError, OSError) as error:
            what, hint = getattr(error, "what", str(error)), getattr(error, "hint", None)
            yield Finding(kind="journal", where=where, what=what, hint=hint)
            costs = None
            continue
        if entry is None:
            if complete:
                yield Finding(kind="journal", where=where, what="the journal entry is missing")
            costs = None
            continue
        where_rejects = str(rejects_path(path, unit))
        if rejects is None or sha256_bytes(rejects) != entry.rejects_sha256:
            what = "the rejects are missing or altered"
            yield Finding(kind="journal", where=where_rejects, what=what)
        elif problem := _rejects_problem(rejects, entry.rejects):
            yield Finding(kind="journal", where=where_rejects, what=problem)
        ranges = indexed.get(entry.shard, [])
        journaled = [
            group
            if group.lengths is not None and known.lengths is not None
            else group.model_copy(update={"lengths": known.lengths})  # an older version wrote one
            for group, known in zip_longest(entry.row_groups, ranges, fillvalue=entry.footer)
        ]
        states = [] if entry.hidden is None else list(entry.hidden.row_groups)
        is_lacking = (entry.hidden is None) != (manifest.states is None)
        if hidden is not None and (is_lacking or hidden.get(hidden_name(unit), []) != states):
            what = "the journal entry and the index of hidden states differ"
            yield Finding(kind="journal", where=where, what=what)
        if ranges != journaled:
            what = "the journal entry and the index differ"
            yield Finding(kind="journal", where=where, what=what)
        try:
            if costs is not None:
                costs.add(entry)
        except LabelSetError as error:
            yield Finding(kind="journal", where=where, what=error.what)
            costs = None
    if complete and costs is not None:
        yield from _ledger_file(path, costs)


def _rejects_problem(content: bytes, count: int) -> str | None:
    try:
        with checked_parquet(content) as file:
            if not file.schema_arrow.remove_metadata().equals(REJECT_SCHEMA):
                return "this is not a file of rejects: its columns differ"
            if file.metadata.num_rows != count:
                return f"{file.metadata.num_rows} rejects, the journal says {count}"
    except (ValueError, OSError, pa.ArrowException) as error:
        return f"this is not a file of rejects: {first_line(error)}"
    return None


def _ledger_file(path: Path, costs: LedgerSums) -> Iterator[Finding]:
    hint = f"`labeler repair {path}` writes it anew"
    try:
        file = set_file(path, LEDGER)
        if not file.is_file():
            yield Finding(kind="ledger", where=LEDGER, what="the ledger is missing", hint=hint)
        elif not is_ledger_of(file.read_bytes(), costs.ledger()):
            what = "the ledger is not the sum of the journal's entries"
            yield Finding(kind="ledger", where=LEDGER, what=what, hint=hint)
    except (LabelSetError, OSError, ValueError, ArithmeticError) as error:
        what = getattr(error, "what", first_line(error))
        yield Finding(kind="ledger", where=LEDGER, what=what)


def _undeclared_files(labels: LabelSet) -> Iterator[Finding]:
    if labels.remote is not None and is_web(labels.remote):
        what = "a web server does not list its files: files beside the set were not searched for"
        yield Finding(kind="stray", what=what, note=True)
        return
    for name in extra_files(labels):
        if (labels.path / name).is_symlink():
            yield Finding(kind="stray", where=name, what="a symbolic link, not part of the set")
        elif re.fullmatch(rf"({JOURNAL}/)?plan-\d+\.(rejects\.)?parquet", name):
            what = "left by an append that did not finish, and replaced by the next one"
            yield Finding(kind="stray", where=name, what=what, note=True)
        elif is_set_file(name):
            is_part = name.startswith(("shards/", "hidden/"))
            glob = " (a raw glob would read it)" if is_part else ""
            what = f"not declared by the manifest or the index{glob}"
            yield Finding(kind="stray", where=name, what=what)
        else:
            yield Finding(kind="stray", where=name, what="not part of the set", note=True)
