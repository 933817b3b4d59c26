"""`journal/`: one entry per finished work unit.

A unit is done when its entry is on disk and its shard is in place (`finished_unit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.arrow import REJECT_SCHEMA, parquet_options, read_parquet
from schemas.atomic import atomic_path, write_atomic
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_file, sha256_json
from schemas.manifest import Model

JOURNAL = "journal"
REJECTS_PER_ROW_GROUP = 10_000


class ByteRange(Model):
    """Bytes [start, stop) of a shard file and their hash; the counts are 0 for the footer."""

    start: int
    stop: int
    sha256: str
    rows: int = 0
    labels: int = 0
    tokens: int = 0


class UnitEntry(Model):
    """The record of one finished work unit. `row_groups` and `footer` tile the shard file."""

    unit: int
    shard: str
    rows: int
    labels: int
    tokens: int
    rejects: int
    row_groups: tuple[ByteRange, ...]
    footer: ByteRange
    rejects_sha256: str
    provenance: dict[str, Any]
    self_digest: str = ""

    @property
    def bytes(self) -> int:
        """Size of the shard file in bytes."""
        return self.footer.stop

    def sealed(self) -> UnitEntry:
        """Return the same entry with its own digest filled in."""
        content = self.model_dump(mode="json") | {"self_digest": ""}
        return self.model_copy(update={"self_digest": sha256_json(content)})


def shard_name(unit: int) -> str:
    """Return the path of a unit's shard, relative to the set."""
    return f"shards/part-{unit:06d}.parquet"


def entry_path(directory: Path, unit: int) -> Path:
    """Return the path of a unit's journal entry."""
    return directory / JOURNAL / f"unit-{unit:06d}.json"


def rejects_path(directory: Path, unit: int) -> Path:
    """Return the path of a unit's rejects."""
    return directory / JOURNAL / f"unit-{unit:06d}.rejects.parquet"


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
    """Return all rejects of a set: first the plans', then the units'."""
    files = sorted((directory / JOURNAL).glob("*.rejects.parquet"))
    tables = [read_parquet(path) for path in files]
    # An empty table imports pandas, so there is one only where it is needed.
    return pa.concat_tables(tables or [REJECT_SCHEMA.empty_table()])


def journal_unit(
    directory: Path,
    unit: int,
    groups: tuple[ByteRange, ...],
    footer: ByteRange,
    *,
    rejects: Sequence[Mapping[str, object]],
    provenance: dict[str, Any],
) -> UnitEntry:
    """Write a unit's rejects, then its entry; its shard must be in place.

    Args:
        directory: the set's folder.
        unit: the unit's number.
        groups: byte ranges of the shard's row groups, in order.
        footer: byte range of the shard's footer.
        rejects: the rows that could not be labeled.
        provenance: how the unit was made, for `UnitEntry.provenance`.
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
    path = entry_path(directory, unit)
    if not path.exists():
        return None
    hint = "delete the entry and run the same `labeler label` command: it labels the unit again"
    try:
        entry = UnitEntry.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise LabelSetError("the journal entry cannot be read", path=path, hint=hint) from error
    if entry.sealed().self_digest != entry.self_digest or entry.unit != unit:
        raise LabelSetError("the journal entry was altered", path=path, hint=hint)
    return entry


def finished_unit(directory: Path, unit: int) -> UnitEntry | None:
    """Return the entry of a unit that is done: journaled, with its shard in place and complete.

    Raises:
        LabelSetError: the entry was altered.
    """
    entry = read_entry(directory, unit)
    if entry is None:
        return None
    shard = directory / entry.shard
    return entry if shard.is_file() and shard.stat().st_size == entry.bytes else None


def read_entries(directory: Path, units: int) -> list[UnitEntry]:
    """Return the entries that exist for the first `units` units, by unit number."""
    return [e for unit in range(units) if (e := read_entry(directory, unit)) is not None]
