"""`--append`: the records of another input become further units of an existing label set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from labeler.labeling.planning.cut import Planned
from labeler.labeling.planning.planned_row import SpanFields
from labeler.labeling.rendering.render import Sequence
from labeler.labeling.rendering.spans import Span
from schemas import Manifest
from schemas.journal import plan_rejects_path, write_rejects
from schemas.manifest import write_manifest
from schemas.plan import next_plan, open_plan, read_units, remove_other_plans, write_plan


def is_recorded(settings: dict[str, object], manifest: Manifest) -> bool:
    """Return whether the input in `settings` is in the set's plan, from the start or appended."""
    return _call(settings) in _calls(manifest)


def known_rows(out: Path, manifest: Manifest) -> Iterator[Sequence]:
    """Yield the rows of the set's plan, unit by unit.

    Raises:
        LabelSetError: the plan is missing or altered.
    """
    for unit in read_units(open_plan(out, manifest.plan)):
        for row in unit.drop_columns(["unit", "n_tokens"]).to_pylist():
            yield Sequence(**row | {n: _spans(row[n]) for n in ("spans", "student_spans")})


def append(
    planned: Planned,
    manifest: Manifest,
    out: Path,
    settings: dict[str, object],
    parents: list[dict[str, Any]],
) -> Manifest:
    """Add the units of `planned` after the set's own; the set is `running` again.

    The new plan is a new file, and the set changes at one moment, when the manifest switches to it:
    a process killed before has changed nothing, one killed after has appended.

    Args:
        planned: the new rows.
        manifest: of the set in `out`.
        out: the set's folder.
        settings: the plan settings of this call.
        parents: facts about the label sets among its inputs.

    Returns:
        The new manifest, already on disk.
    """
    added = {"planned_rows": planned.rows, "planned_tokens": planned.n_tokens}
    added |= {"planned_labels": planned.n_labels, "plan_rejects": planned.rejects}
    provenance = manifest.provenance | {n: manifest.provenance[n] + added[n] for n in added}
    inputs = manifest.provenance["plan"]["inputs"] | settings["inputs"]
    provenance["plan"] = manifest.provenance["plan"] | {"inputs": inputs}
    provenance["calls"] = [*_calls(manifest), _call(settings)]
    if parents:
        before = manifest.provenance.get("parents", [])
        provenance["parents"] = [*before, *(p for p in parents if p not in before)]
    changes: dict[str, object] = {"provenance": provenance}
    plan = manifest.plan
    assert plan is not None, "`begin` refuses derived sets"
    if planned.units or planned.rejects:
        name = next_plan(plan.path)
        rejects = map(vars, planned.all_rejects())
        write_rejects(plan_rejects_path(out, name), rejects)
        old = read_units(open_plan(out, manifest.plan))
        new = planned.tables(manifest.planned_units)
        plan = write_plan(out, chain(old, new), name)
        changes |= {
            "status": "running",
            "plan": plan,
            "planned_units": manifest.planned_units + planned.units,
            "index_pages": (),
            "hidden_pages": None,
            "totals": None,
        }
    appended = manifest.model_copy(update=changes)
    write_manifest(out, appended)
    remove_other_plans(out, plan.path)
    return appended


def _call(settings: dict[str, object]) -> dict[str, object]:
    """Return the settings that name the input; each call that appended rows records them."""
    return {"inputs": settings["inputs"], "limit": settings.get("limit")}


def _calls(manifest: Manifest) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = manifest.provenance.get(
        "calls", [_call(manifest.provenance["plan"])]
    )
    return calls


def _spans(spans: list[SpanFields] | None) -> tuple[Span, ...] | None:
    return None if spans is None else tuple(Span(**span) for span in spans)
