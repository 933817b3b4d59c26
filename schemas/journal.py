"""`journal/`: one entry per finished work unit.

A unit is done when its entry is on disk and its shard is in place (`finished_unit`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import model_validator

from schemas.arrow import REJECT_SCHEMA, parquet_options
from schemas.atomic import atomic_path, write_atomic
from schemas.errors import LabelSetError, first_line
from schemas.file_names import (
    BATCH,
    JOURNAL,
    entry_name,
    hidden_name,
    rejects_name,
    shard_name,
)
from schemas.fingerprint import sha256_file, sha256_json
from schemas.journal_batches import (
    UnitFiles,
    batch_path,
    drop_from_batch,
    read_batch,
    write_batch,
)
from schemas.manifest import Count, Digest, LateFields, Model
from schemas.parquet_sizes import checked_parquet
from schemas.row_lengths import lengths_from_text
from schemas.set_paths import set_file

REJECTS_PER_ROW_GROUP = 10_000


class ByteRange(LateFields):
    """Bytes [start, stop) of a shard file and their hash; the counts are 0 for the footer.

    `lengths` are those of the rows (`schemas.row_lengths`); older versions left them out.
    """

    late: ClassVar[tuple[str, ...]] = ("lengths",)

    start: Count
    stop: Count
    sha256: Digest
    rows: Count = 0
    labels: Count = 0
    tokens: Count = 0
    lengths: str | None = None


def require_tiling(groups: Sequence[ByteRange], footer: ByteRange) -> None:
    """Check that byte ranges follow each other from the first byte of a shard to its last.

    Each row has at least one byte, so that no count is larger than the file.

    Raises:
        ValueError: they leave a gap or overlap, or state more rows than bytes.
    """
    at = 0
    for part in (*groups, footer):
        if part.start != at or part.stop <= at:
            raise ValueError(f"bytes {part.start} to {part.stop} do not follow byte {at}")
        at = part.stop
        if part.rows > part.stop - part.start:
            raise ValueError(f"{part.rows} rows do not fit {part.stop - part.start} bytes")


class HiddenPart(Model):
    """The byte ranges of a unit's hidden states, which tile `hidden/part-NNNNNN.parquet`."""

    row_groups: tuple[ByteRange, ...]
    footer: ByteRange

    @property
    def bytes(self) -> int:
        """Size of the file in bytes."""
        return self.footer.stop


class UnitEntry(LateFields):
    """The record of one finished work unit. `row_groups` and `footer` tile the shard file."""

    late: ClassVar[tuple[str, ...]] = ("hidden",)

    unit: Count
    shard: str
    rows: Count
    labels: Count
    tokens: Count
    rejects: Count
    row_groups: tuple[ByteRange, ...]
    footer: ByteRange
    hidden: HiddenPart | None = None
    rejects_sha256: str
    provenance: dict[str, Any]
    self_digest: str = ""

    @model_validator(mode="after")
    def _fits(self) -> UnitEntry:
        """Refuse another unit's shard, and byte ranges that do not tile one."""
        if self.shard != shard_name(self.unit):
            raise ValueError(f"unit {self.unit} has its shard elsewhere: {self.shard!r}")
        require_tiling(self.row_groups, self.footer)
        for group in self.row_groups:
            if group.lengths is not None:
                lengths_from_text(group.lengths, group.rows)
        if self.hidden is not None:
            require_tiling(self.hidden.row_groups, self.hidden.footer)
            rows, states = ([(g.rows, g.labels) for g in part.row_groups] for part in self.parts)
            if rows != states:
                raise ValueError("shard and hidden states differ in rows or labels")
        return self

    @property
    def parts(self) -> tuple[UnitEntry | HiddenPart, ...]:
        """The files of the unit: its shard and, if it has any, its hidden states."""
        return (self,) if self.hidden is None else (self, self.hidden)

    @property
    def files(self) -> dict[str, int]:
        """The sizes of these files in bytes, by their names."""
        names = (self.shard, hidden_name(self.unit))
        return {name: part.footer.stop for name, part in zip(names, self.parts, strict=False)}

    @property
    def bytes(self) -> int:
        """Size of the shard file in bytes."""
        return self.footer.stop

    def sealed(self) -> UnitEntry:
        """Return the same entry with its own digest filled in."""
        content = self.model_dump(mode="json") | {"self_digest": ""}
        return self.model_copy(update={"self_digest": sha256_json(content)})


def entry_path(directory: Path, unit: int) -> Path:
    """Return the path of a unit's journal entry."""
    return directory / entry_name(unit)


def rejects_path(directory: Path, unit: int) -> Path:
    """Return the path of a unit's rejects."""
    return directory / rejects_name(unit)


def plan_rejects_path(directory: Path, plan: str) -> Path:
    """Return the path of the records that `plan` rejected; each appended input has its own file."""
    return directory / JOURNAL / f"{plan.removesuffix('.parquet')}.rejects.parquet"


def write_rejects(path: Path, rejects: Iterable[Mapping[str, object]]) -> str:
    """Write rejects atomically, in batches, and return the file's digest."""
    options = parquet_options(REJECT_SCHEMA, dictionary=["source"])
    rest = iter(rejects)
    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, REJECT_SCHEMA, **options) as writer:
        while batch := list(islice(rest, REJECTS_PER_ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, schema=REJECT_SCHEMA))
    return sha256_file(path)


def read_rejects(directory: Path) -> pa.Table:
    """Return all rejects of a set: first the plans', then the units'.

    Raises:
        LabelSetError: a file is a link, or holds no rejects.
    """
    files = sorted((directory / JOURNAL).glob("*.rejects.parquet"))
    tables = [_rejects(set_file(directory, f"{JOURNAL}/{path.name}"), path) for path in files]
    for first in _numbers(directory, r"units-#\.parquet"):
        for unit, content in read_batch(directory, first).items():
            if not rejects_path(directory, unit).exists():
                tables.append(_rejects(content.rejects, batch_path(directory, unit)))
    # An empty table imports pandas, so there is one only where it is needed.
    return pa.concat_tables(tables or [REJECT_SCHEMA.empty_table()])


def _rejects(content: Path | bytes, path: Path) -> pa.Table:
    try:
        with checked_parquet(content) as file:
            if not file.schema_arrow.remove_metadata().equals(REJECT_SCHEMA):
                raise ValueError("its columns differ")
            table = file.read()
            table.validate(full=True)  # text must be UTF-8
            return table
    except (ValueError, OSError, pa.ArrowException) as error:
        what = f"the rejects cannot be read: {first_line(error)}"
        raise LabelSetError(
            what, path=path, hint="`labeler verify` names what was altered"
        ) from error


def journal_unit(
    directory: Path,
    unit: int,
    groups: tuple[ByteRange, ...],
    footer: ByteRange,
    *,
    rejects: Sequence[Mapping[str, object]],
    provenance: dict[str, Any],
    hidden: HiddenPart | None = None,
) -> UnitEntry:
    """Write a unit's rejects, then its entry; its shard and hidden states must be in place.

    Args:
        directory: the set's folder.
        unit: the unit's number.
        groups: byte ranges of the shard's row groups, in order.
        footer: byte range of the shard's footer.
        rejects: the rows that could not be labeled.
        provenance: how the unit was made, for `UnitEntry.provenance`.
        hidden: byte ranges of its hidden states, if it has any.
    """
    entry = UnitEntry(
        unit=unit,
        shard=shard_name(unit),
        rows=sum(group.rows for group in groups),
        labels=sum(group.labels for group in groups),
        tokens=sum(group.tokens for group in groups),
        rejects=len(rejects),
        row_groups=groups,
        footer=footer,
        hidden=hidden,
        rejects_sha256=write_rejects(rejects_path(directory, unit), rejects),
        provenance=provenance,
    )
    write_entry(directory, entry)
    return entry


def write_entry(directory: Path, entry: UnitEntry) -> None:
    """Journal a unit whose shard is in place: from now on the unit is done."""
    text = entry.sealed().model_dump_json(indent=1) + "\n"
    write_atomic(entry_path(directory, entry.unit), text)


def read_entry(directory: Path, unit: int) -> UnitEntry | None:
    """Return the entry of a unit; None where there is none.

    Raises:
        LabelSetError: the entry was altered.
    """
    path = set_file(directory, entry_name(unit))
    hint = "delete the entry and run the same `labeler label` command: it labels the unit again"
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # or another process has just merged it into its batch
        path = batch_path(directory, unit)
        if (files := read_batch(directory, unit).get(unit)) is None:
            return None
        content = files.entry
    try:
        entry = UnitEntry.model_validate_json(content)
        digest = entry.sealed().self_digest
    except (ValueError, RecursionError) as error:  # the digest prints numbers of any length
        raise LabelSetError("the journal entry cannot be read", path=path, hint=hint) from error
    if digest != entry.self_digest or entry.unit != unit:
        raise LabelSetError("the journal entry was altered", path=path, hint=hint)
    return entry


def unit_rejects(directory: Path, unit: int) -> bytes | None:
    """Return the content of a unit's file of rejects; None where it is missing.

    Raises:
        LabelSetError: it is a link, or the batch that it should be in was altered.
    """
    path = set_file(directory, rejects_name(unit))
    if path.is_file():
        return path.read_bytes()
    files = read_batch(directory, unit).get(unit)
    return None if files is None else files.rejects


def forget_unit(directory: Path, unit: int) -> bool:
    """Delete the entry of a unit, wherever it is, and return whether there was one.

    Hold the set's lock: no other process may compact the journal meanwhile.
    """
    known = read_batch(directory, unit)
    drop_from_batch(directory, unit)
    path = entry_path(directory, unit)
    alone = path.exists()
    path.unlink(missing_ok=True)
    return alone or unit in known


def compact_journal(directory: Path, units: int) -> int:
    """Merge the entries and rejects of each full batch of finished units into one file.

    Hold the set's lock. A crash leaves the batch, its parts, or both, which are the same.

    Args:
        directory: the set's folder.
        units: number of planned units; the last ones, fewer than a batch, stay as they are.

    Returns:
        The number of batches that were written.
    """
    written = 0
    alone: dict[int, list[int]] = {}
    for unit in _units_alone(directory):
        alone.setdefault(unit // BATCH, []).append(unit)
    for number in sorted(alone):
        members = range(number * BATCH, (number + 1) * BATCH)
        if members.stop > units:
            continue
        merged = read_batch(directory, members.start)
        files = {unit: _unit_files(directory, unit) or merged.get(unit) for unit in members}
        full = {unit: content for unit, content in files.items() if content is not None}
        if len(full) < BATCH:
            continue
        if full != merged:
            write_batch(directory, full)
            written += 1
        for unit in alone[number]:
            entry_path(directory, unit).unlink()
            rejects_path(directory, unit).unlink()
    return written


def _unit_files(directory: Path, unit: int) -> UnitFiles | None:
    """Return a unit's own files, if there are both, and the entry is good."""
    entry, rejects = entry_path(directory, unit), rejects_path(directory, unit)
    if not (entry.is_file() and rejects.is_file()):
        return None
    read_entry(directory, unit)
    return UnitFiles(entry.read_bytes(), rejects.read_bytes())


def finished_unit(
    directory: Path, unit: int, sizes: Mapping[str, int] | None = None
) -> UnitEntry | None:
    """Return the entry of a unit that is done: journaled, with its files in place and complete.

    Args:
        directory: the set's folder.
        unit: the unit's number.
        sizes: sizes in bytes of the shards and hidden states in an object store, by name; by
            default, they are in the folder.

    Raises:
        LabelSetError: the entry was altered.
    """
    entry = read_entry(directory, unit)
    if entry is None:
        return None
    for name, size in entry.files.items():
        if sizes is not None:
            is_there = sizes.get(name) == size
        else:
            path = set_file(directory, name)
            is_there = path.is_file() and path.stat().st_size == size
        if not is_there:
            return None
    return entry


def read_entries(directory: Path, units: int) -> list[UnitEntry]:
    """Return the entries that exist for the first `units` units, by unit number."""
    return [
        entry
        for unit in journaled_units(directory)
        if unit < units and (entry := read_entry(directory, unit)) is not None
    ]


def journaled_units(directory: Path) -> list[int]:
    """Return the numbers of the units that have an entry, in a file of its own or in a batch."""
    merged = (read_batch(directory, first) for first in _numbers(directory, r"units-#\.parquet"))
    return sorted({*_units_alone(directory), *(unit for batch in merged for unit in batch)})


def _units_alone(directory: Path) -> list[int]:
    """Return the numbers of the units that have an entry in a file of its own."""
    numbers = _numbers(directory, r"unit-#\.json")
    return sorted(unit for unit in numbers if entry_path(directory, unit).exists())


def _numbers(directory: Path, pattern: str) -> list[int]:
    """Return the numbers in names of the journal's files; `#` stands for one in the pattern."""
    pattern = pattern.replace("#", r"(\d{6,15})")
    names = (re.fullmatch(pattern, path.name) for path in (directory / JOURNAL).glob("*"))
    return sorted(int(name[1]) for name in names if name is not None)
