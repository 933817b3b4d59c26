"""`labeler repair`: quarantine what is damaged, rebuild what can be, and list units to redo."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.console import out as console
from labeler.labeling.runs.locks import exclusive_lock
from labeler.labeling.teacher.tokenizer_files import copy_tokenizer
from labeler.labeling.writing.finalize import finalize
from labeler.labeling.writing.set_place import SetPlace, open_place
from labeler.labelsets.repair.diagnosis import (
    FROM_FILE,
    Diagnosis,
    diagnose,
    require_label_set,
)
from labeler.labelsets.repair.rebuild_plan import rebuild_rejects, rebuild_units
from labeler.labelsets.repair.repair_config import RepairConfig
from labeler.labelsets.repair.salvage import tokenizer_digests
from schemas import Manifest
from schemas.file_names import INDEX, TOKENIZER
from schemas.hidden_part import RESTORE
from schemas.journal import rejects_path, write_entry, write_rejects
from schemas.ledger import LEDGER
from schemas.manifest import MANIFEST, write_manifest
from schemas.plan import open_plan, write_plan
from schemas.set_files import QUARANTINE

UNITS_NAMED = 12


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The changes of a repair, made or only planned (`dry_run`).

    Attributes:
        path: the set.
        dry_run: nothing was changed.
        moved: files moved into `quarantine/`, with the reason.
        rebuilt: the rebuilt parts, with their source.
        redo: units that the same `labeler label` command labels again.
        left: the parts that could not be repaired.
    """

    path: str
    dry_run: bool
    moved: dict[str, str]
    rebuilt: list[str]
    redo: list[int]
    left: list[str]


def run_repair(config: RepairConfig) -> int:
    """Repair a label set, print what was done, and return the exit code: 0 if it is complete now.

    Raises:
        SoftshardsError: the label set is missing, nothing is left to rebuild it from, or another
            process is using it.
    """
    with open_place(config.labels) as place:
        result = _repair(place, config.model, dry_run=config.dry_run)
    if config.as_json:
        print(json.dumps(vars(result)))
    else:
        _print(result)
    incomplete = result.redo or result.left
    pending = config.dry_run and (result.moved or result.rebuilt)
    return 1 if incomplete or pending else 0


def _repair(place: SetPlace, model: Path | None, *, dry_run: bool) -> Repair:
    out = place.folder
    if place.remote is None:
        require_label_set(out)  # before the lock writes a file there
    if dry_run:
        place.pull(whole=True)
        found = diagnose(out, model)
    else:
        with exclusive_lock(place, "repair"):
            found = diagnose(out, model)
            if not found.is_undamaged:
                _apply(found)
                place.publish()
    return dataclasses.replace(describe_repair(found, dry_run=dry_run), path=place.name)


def describe_repair(found: Diagnosis, *, dry_run: bool) -> Repair:
    """Return the changes that a diagnosis calls for."""
    moved = {str(path.relative_to(found.out)): reason for path, reason in found.moves.items()}
    return Repair(
        path=str(found.out),
        dry_run=dry_run,
        moved=moved,
        rebuilt=list(_rebuilt_parts(found)),
        redo=found.redo,
        left=list(_unrepaired_parts(found)),
    )


def _rebuilt_parts(found: Diagnosis) -> Iterator[str]:
    if found.manifest_lost is not None:
        yield f"the manifest, from the shards' footers and the old {MANIFEST}"
    if found.rebuilds_plan:
        yield "the plan, from the rows of the shards"
    for source in sorted(set(found.rebuilt.values())):
        units = [unit for unit, checked in found.rebuilt.items() if checked == source]
        check = f"checked against {source}"
        if source == FROM_FILE:
            check = "only self-consistent: page checksums and invariants hold, no hash was left"
        yield f"journal entries of units {_numbers(units)}, {check}"
    if found.lost_rejects:
        yield f"rejects of units {_numbers(found.lost_rejects)}, without the reasons"
    if found.tokenizer_source is not None:
        yield f"the tokenizer, from {found.tokenizer_source}"
    if not found.index_good and not found.redo:
        yield f"the index ({INDEX}/)"


def _unrepaired_parts(found: Diagnosis) -> Iterator[str]:
    if found.tokenizer_lost and found.tokenizer_source is None:
        yield "tokenizer files are missing or altered: give the teacher's folder with --model"
    for name in found.lost_files:
        yield f"{name} is missing or altered: {RESTORE}"
    if found.plan == "missing" and not found.rebuilds_plan:
        yield (
            "the plan is missing or altered: the same `labeler label` command plans again from the "
            "same input"
        )
    if found.redo and found.manifest.plan is None:
        how = found.manifest.provenance.get("derived", {}).get("how", "")
        yield (f"units {_numbers(found.redo)}: run the command that made this set again ({how})")


def _numbers(units: list[int]) -> str:
    more = len(units) - UNITS_NAMED
    return ", ".join(map(str, units[:UNITS_NAMED])) + (f" and {more} more" if more > 0 else "")


def _print(result: Repair) -> None:
    would = "would be " if result.dry_run else ""
    for name, reason in result.moved.items():
        console.print(f"{would}moved to {QUARANTINE}/: {name} ({reason})")
    for what in result.rebuilt:
        console.print(f"{would}rebuilt: {what}")
    for what in result.left:
        console.print(f"left: {what}", style="red")
    if result.redo:
        console.print(
            f"units to redo: {_numbers(result.redo)}; the same `labeler label` command labels "
            "only these",
        )
    if not (result.moved or result.rebuilt or result.redo or result.left):
        console.print(f"{result.path}: nothing to repair")
    elif not result.dry_run:
        console.print(f"check it with `labeler verify {result.path}`")


def _apply(found: Diagnosis) -> None:
    """Make the changes, the manifest last: after a kill, the same command repairs the rest."""
    out, manifest = found.out, found.manifest
    for path in found.moves:
        _quarantine(path, out)
    if found.tokenizer_source is not None:
        for file in sorted((out / TOKENIZER).glob("*")):
            _quarantine(file, out)
        copied = copy_tokenizer(found.tokenizer_source, out)
        manifest = manifest.model_copy(update={"tokenizer_files": copied})
    elif found.manifest_lost is not None:
        manifest = manifest.model_copy(update={"tokenizer_files": tokenizer_digests(out)})
    for unit in sorted({*found.lost_rejects, *found.rebuilt}):
        _write_entry(found, unit)
    if found.rebuilds_plan:
        assert manifest.plan is not None
        units = rebuild_units(out, found.entries, manifest.identity)
        plan = write_plan(out, units, manifest.plan.path)
        manifest = manifest.model_copy(update={"plan": plan})
    _close(found, manifest)


def _write_entry(found: Diagnosis, unit: int) -> None:
    out, entry = found.out, found.entries[unit]
    if unit in found.lost_rejects:
        rows: list[dict[str, Any]] = []
        if found.plan == "good":
            with open_plan(out, found.manifest.plan) as plan:
                rows = rebuild_rejects(out, entry, plan, found.manifest.identity)
        digest = write_rejects(rejects_path(out, unit), rows)
        entry = entry.model_copy(update={"rejects": len(rows), "rejects_sha256": digest})
    write_entry(out, entry)


def _close(found: Diagnosis, manifest: Manifest) -> None:
    """Write index and manifest: complete if no unit is missing, else running."""
    out = found.out
    ledger = (out / LEDGER).read_bytes() if (out / LEDGER).is_file() else None
    if found.redo:
        changes = {"status": "running", "index_pages": (), "hidden_pages": None, "totals": None}
        write_manifest(out, manifest.model_copy(update=changes))
        for page in sorted((out / INDEX).glob("*.parquet")):
            _quarantine(page, out)
        return
    if manifest.status == "running" or not found.index_good or manifest != found.manifest:
        finalize(out, manifest)
        if ledger is not None and ledger != (out / LEDGER).read_bytes():
            kept = _free_path(out / QUARANTINE / LEDGER)
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(ledger)


def _quarantine(path: Path, out: Path) -> None:
    """Move a file to the same place under `quarantine/`, without overwriting a file there.

    A temporary file loses its leading dot: the next run deletes temporary files anywhere in `out`.
    """
    if path.exists():
        place = out / QUARANTINE / path.relative_to(out)
        target = _free_path(place.with_name(place.name.lstrip(".")))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def _free_path(target: Path) -> Path:
    """Return the path, with a number appended if it is taken."""
    number, free = 0, target
    while free.exists():
        number += 1
        free = target.with_name(f"{target.name}.{number}")
    return free
