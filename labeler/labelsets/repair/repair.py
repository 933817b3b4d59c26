"""`labeler repair`: put damage aside, rebuild what can be, and say what is to be redone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labeler.console import out as console
from labeler.labeling.runs.locks import exclusive_lock
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labeling.teacher.tokenizer_files import copy_tokenizer
from labeler.labeling.writing.finalize import finalize
from labeler.labelsets.repair.diagnosis import (
    FROM_FILE,
    QUARANTINE,
    Diagnosis,
    diagnose,
    require_something,
)
from labeler.labelsets.repair.rebuild_plan import lost_rejects, planned_units
from labeler.labelsets.repair.repair_config import RepairConfig
from labeler.labelsets.repair.salvage import tokenizer_files
from schemas import Manifest
from schemas.index import INDEX
from schemas.journal import rejects_path, write_entry, write_rejects
from schemas.labelset import TOKENIZER
from schemas.ledger import LEDGER
from schemas.manifest import MANIFEST, write_manifest
from schemas.plan import PLAN, open_plan, write_plan


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What was done, or would be.

    Attributes:
        path: the set; dry_run: whether nothing was changed.
        moved: files put into `quarantine/`, each with the reason.
        rebuilt: what was made again, and from what.
        redo: units that the same `labeler label` command labels again.
        left: what could not be repaired.
    """

    path: str
    dry_run: bool
    moved: dict[str, str]
    rebuilt: list[str]
    redo: list[int]
    left: list[str]


def run_repair(config: RepairConfig) -> int:
    """Repair a label set, print what was done, and return the exit code: 0 if it is whole now.

    Raises:
        SoftshardsError: the label set is missing, nothing is left to rebuild it from, or another
            process is using it.
    """
    out, model, dry_run = config.labels, config.model, config.dry_run
    require_something(out)  # before a lock is put there
    if dry_run:
        result = repaired(diagnose(out, model), dry_run=True)
    else:
        with exclusive_lock(out, "repair"):
            found = diagnose(out, model)
            result = repaired(found, dry_run=False)
            if not found.sound:
                _apply(found)
    if config.as_json:
        print(json.dumps(vars(result)))
    else:
        _print(result)
    whole = not (result.redo or result.left)
    pending = dry_run and (result.moved or result.rebuilt)
    return 0 if whole and not pending else 1


def repaired(found: Diagnosis, *, dry_run: bool) -> Repair:
    """What a diagnosis comes to."""
    names = {str(p.relative_to(found.out)): reason for p, reason in found.moves.items()}
    return Repair(
        path=str(found.out),
        dry_run=dry_run,
        moved=names,
        rebuilt=list(_rebuilt(found)),
        redo=found.redo,
        left=list(_left(found)),
    )


def _rebuilt(found: Diagnosis) -> Iterator[str]:
    if found.manifest_lost is not None:
        yield f"the manifest, from the shards' footers and what it still said ({MANIFEST})"
    if found.plan == "missing" and not found.redo:
        yield "the plan, from the rows of the shards"
    for source in sorted(set(found.rebuilt.values())):
        units = [unit for unit, of in found.rebuilt.items() if of == source]
        vouched = f"checked against {source}"
        if source == FROM_FILE:
            vouched = "only self-consistent: pages and every invariant hold, no hash was left"
        yield f"journal entries of units {_numbers(units)}, {vouched}"
    if found.lost_rejects:
        yield f"rejects of units {_numbers(found.lost_rejects)}, without the reasons"
    if isinstance(found.tokenizer, Path):
        yield f"the tokenizer, from {found.tokenizer}"
    if not found.index and not found.redo:
        yield f"the index ({INDEX}/)"


def _left(found: Diagnosis) -> Iterator[str]:
    if found.tokenizer == "":
        yield "tokenizer files are missing or altered: give the teacher's folder with --model"
    if found.plan == "missing" and found.redo:
        yield (
            "the plan is missing or altered: the same `labeler label` command plans again from the "
            "same input"
        )
    if found.redo and found.manifest.plan is None:
        how = found.manifest.provenance.get("derived", {}).get("how", "")
        yield f"units {_numbers(found.redo)}: run the command that made this set again ({how})"


def _numbers(units: list[int]) -> str:
    return ", ".join(map(str, units[:12])) + (f" and {len(units) - 12} more" * (len(units) > 12))


def _print(result: Repair) -> None:
    would = "would be " if result.dry_run else ""
    for name, reason in result.moved.items():
        console.print(f"{would}moved to {QUARANTINE}/: {name} ({reason})", markup=False)
    for what in result.rebuilt:
        console.print(f"{would}rebuilt: {what}", markup=False)
    for what in result.left:
        console.print(f"left: {what}", style="red", markup=False)
    if result.redo:
        console.print(
            f"units to redo: {_numbers(result.redo)}; the same `labeler label` command labels "
            "these alone",
            markup=False,
        )
    if not (result.moved or result.rebuilt or result.redo or result.left):
        console.print(f"{result.path}: nothing to repair")
    elif not result.dry_run:
        console.print(f"check it with `labeler verify {result.path}`")


def _apply(found: Diagnosis) -> None:
    """Do it. The manifest comes last: a repair that is killed is begun again from what it left."""
    out, manifest = found.out, found.manifest
    for path in found.moves:
        _put_aside(path, out)
    if isinstance(found.tokenizer, Path):
        for file in sorted((out / TOKENIZER).glob("*")):
            _put_aside(file, out)
        teacher = open_teacher(found.tokenizer, max_length=1)
        manifest = manifest.model_copy(
            update={"tokenizer_files": copy_tokenizer(teacher.path, out)}
        )
    elif found.manifest_lost is not None:
        manifest = manifest.model_copy(update={"tokenizer_files": tokenizer_files(out)})
    for unit in sorted({*found.lost_rejects, *found.rebuilt}):
        _write_entry(found, unit)
    if found.plan == "missing" and not found.redo:
        assert manifest.plan is not None
        units = planned_units(out, found.entries, manifest.identity)
        name = manifest.plan.path if manifest.plan else PLAN
        manifest = manifest.model_copy(update={"plan": write_plan(out, units, name)})
    _close(found, manifest)


def _write_entry(found: Diagnosis, unit: int) -> None:
    out, entry = found.out, found.entries[unit]
    if unit in found.lost_rejects:
        rows = []
        if found.plan == "whole":
            with open_plan(out, found.manifest.plan) as plan:
                rows = lost_rejects(out, entry, plan, found.manifest.identity)
        digest = write_rejects(rejects_path(out, unit), rows)
        entry = entry.model_copy(update={"rejects": len(rows), "rejects_sha256": digest})
    write_entry(out, entry)


def _close(found: Diagnosis, manifest: Manifest) -> None:
    """Write index and manifest: complete where every unit is there, running where one is not."""
    out = found.out
    ledger = (out / LEDGER).read_bytes() if (out / LEDGER).is_file() else None
    if found.redo:
        changes = {"status": "running", "index_pages": (), "totals": None}
        write_manifest(out, manifest.model_copy(update=changes))
        for page in sorted((out / INDEX).glob("page-*.parquet")):
            _put_aside(page, out)
        return
    if manifest.status == "running" or not found.index or manifest != found.manifest:
        finalize(out, manifest)
        if ledger is not None and ledger != (out / LEDGER).read_bytes():
            kept = _free(out / QUARANTINE / LEDGER)
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(ledger)


def _put_aside(path: Path, out: Path) -> None:
    """Move a file to the same place under `quarantine/`, over nothing that is there.

    Without the dot of a temporary file: the next run deletes those wherever they are.
    """
    if path.exists():
        place = out / QUARANTINE / path.relative_to(out)
        target = _free(place.with_name(place.name.lstrip(".")))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def _free(target: Path) -> Path:
    """The path, or with a number behind it where that is taken."""
    number, free = 0, target
    while free.exists():
        number += 1
        free = target.with_name(f"{target.name}.{number}")
    return free
