"""Going on with a set that was damaged: its plan is made again, settings are taken as given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labeler.console import err
from labeler.labeling.planning.cut import Planned
from schemas import LabelSetError, Manifest
from schemas.manifest import write_manifest
from schemas.plan import PLAN, open_plan, write_plan


def is_lost(out: Path, manifest: Manifest) -> bool:
    """Whether the plan is not there or is altered, and can be made again.

    Raises:
        LabelSetError: it is lost, and rows were appended to it: the order of calls is not known.
    """
    try:
        open_plan(out, manifest.plan).close()
    except LabelSetError:
        if manifest.plan is None or manifest.plan.path != PLAN:
            raise
        return True
    return False


def adopt(settings: dict[str, Any], step: int, manifest: Manifest, out: Path) -> Manifest:
    """Record the settings of this call in a manifest that was rebuilt and does not know its own.

    Args:
        settings: of the plan, with no inputs where more are to be added (--append): what the set
            has already is left out, so nothing is lost and nothing comes twice.
        step: tokens an engine step.
        manifest: of the set in `out`.
    """
    err.print(
        f"the manifest of {out} was rebuilt and does not know its input and plan settings: going "
        "on with those given"
    )
    counts = dict.fromkeys(("planned_rows", "planned_tokens", "planned_labels"), 0)
    known = counts | {"max_batched_tokens": step} | manifest.provenance | {"plan": settings}
    adopted = manifest.model_copy(update={"provenance": known})
    write_manifest(out, adopted)
    return adopted


def plan_again(planned: Planned, out: Path, manifest: Manifest) -> None:
    """Write the plan anew, and make sure that it is the one that was lost.

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
