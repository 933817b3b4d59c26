"""Resuming a damaged set: its plan is written again, missing settings are taken from this call."""

from __future__ import annotations

from pathlib import Path

from labeler.console import err
from labeler.labeling.planning.cut import Planned
from schemas import LabelSetError, Manifest
from schemas.manifest import write_manifest
from schemas.plan import PLAN, open_plan, write_plan


def is_plan_lost(out: Path, manifest: Manifest) -> bool:
    """Return whether the plan is missing or altered, and can be written again.

    Raises:
        LabelSetError: it is lost after rows were appended: the order of the calls is not known.
    """
    try:
        open_plan(out, manifest.plan).close()
    except LabelSetError:
        if manifest.plan is None or manifest.plan.path != PLAN:
            raise
        return True
    return False


def adopt_settings(
    settings: dict[str, object], step: int, manifest: Manifest, out: Path
) -> Manifest:
    """Record the settings of this call in a rebuilt manifest that has none.

    Args:
        settings: of the plan; without inputs where more are appended (--append), so that nothing
            is lost and nothing is added twice.
        step: tokens per engine step.
        manifest: of the set in `out`.
        out: the set's folder.
    """
    err.print(
        f"the manifest of {out} was rebuilt and lacks its input and plan settings: "
        "continuing with the ones of this command"
    )
    counts = dict.fromkeys(("planned_rows", "planned_tokens", "planned_labels"), 0)
    known = counts | {"max_batched_tokens": step} | manifest.provenance | {"plan": settings}
    adopted = manifest.model_copy(update={"provenance": known})
    write_manifest(out, adopted)
    return adopted


def write_lost_plan(planned: Planned, out: Path, manifest: Manifest) -> None:
    """Write the plan again, and check that it is the one that was lost.

    Raises:
        LabelSetError: the input gives another plan now.
    """
    assert manifest.plan is not None, "a set without a plan is not labeled"
    err.print(f"the plan of {out} is missing or altered: planning again")
    again = write_plan(out, planned.tables(), manifest.plan.path)
    if again.sha256 != manifest.plan.sha256:
        (out / manifest.plan.path).unlink()
        raise LabelSetError(
            "the plan is lost, and the input gives another one now",
            path=out / manifest.plan.path,
            hint="restore the plan from a copy, or label into a new folder",
        )
