"""The end of a run: the index, the totals and the cost of a finished label set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas import Manifest
from schemas.atomic import write_atomic
from schemas.index import write_index
from schemas.journal import UnitEntry, read_entries
from schemas.manifest import Totals, write_manifest

LEDGER = "ledger.json"


def is_closed(out: Path, manifest: Manifest) -> bool:
    """Whether a set is complete and its index is where it should be."""
    pages = manifest.index_pages
    return manifest.status == "complete" and all((out / page.path).is_file() for page in pages)


def finalise(out: Path, manifest: Manifest) -> Manifest:
    """Index the finished units and close the set. Any process may do it, any number of times."""
    entries = read_entries(out, manifest.planned_units)
    complete = manifest.model_copy(
        update={
            "status": "complete",
            "index_pages": write_index(out, entries),
            "totals": Totals(
                units=len(entries),
                rows=sum(e.rows for e in entries),
                tokens=sum(e.tokens for e in entries),
                labels=sum(e.labels for e in entries),
                rejects=sum(e.rejects for e in entries) + manifest.provenance["plan_rejects"],
                bytes=sum(e.bytes for e in entries),
            ),
        }
    )
    _write_ledger(out, entries)
    write_manifest(out, complete)
    return complete


def _write_ledger(out: Path, entries: list[UnitEntry]) -> None:
    """Sum up engine seconds, energy, tokens and labels over all units, by device."""
    devices: dict[str, dict[str, Any]] = {}
    for entry in entries:
        facts = entry.provenance
        name = f"{facts['engine']} {facts['engine_version']} on {facts['device']}"
        nothing = {"engine_seconds": 0.0, "energy_joules": 0.0, "tokens": 0, "labels": 0}
        sums = devices.setdefault(name, nothing | {"energy_source": facts.get("energy_source")})
        sums["engine_seconds"] += facts["engine_seconds"]
        joules = facts.get("energy_joules")
        if joules is None or sums["energy_joules"] is None:
            sums["energy_joules"] = None  # not all of it was measured
        else:
            sums["energy_joules"] += joules
        sums["tokens"] += entry.tokens
        sums["labels"] += entry.labels
    for sums in devices.values():
        sums["engine_seconds"] = round(sums["engine_seconds"], 3)
        sums["tokens_per_s"] = round(sums["tokens"] / max(sums["engine_seconds"], 1e-9), 1)
    write_atomic(out / LEDGER, json.dumps({"engines": devices}, indent=2) + "\n")
