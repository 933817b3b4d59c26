"""`labeler label`: from input files to a finished label set, resumable at any moment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labeler.console import err
from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.begin import begin
from labeler.labeling.runs.identify_teacher import identify_teacher
from labeler.labeling.runs.journal_upkeep import forget_lost_units
from labeler.labeling.runs.label_units import label_units
from labeler.labeling.runs.locks import (
    rank_lock,
    remove_abandoned_files,
    set_lock,
    wait_for_actors,
)
from labeler.labeling.runs.stopping import Stop, stop_on_signals
from labeler.labeling.teacher.locate_teacher import locate_teacher
from labeler.labeling.teacher.teacher import Teacher
from labeler.labeling.writing.finalize import close
from labeler.labeling.writing.set_place import SetPlace, open_place
from schemas import Manifest
from schemas.journal import finished_unit
from schemas.os_errors import explain_full_disk

LabelUnits = Callable[[list[int], LabelConfig, Teacher, Manifest, SetPlace, Stop], int]
"""Labels units and returns how many; `label_units` does it in this process."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The result of a call of `labeler label`; sizes are of all finished units of the set.

    Attributes:
        status: `complete`, or `running` where units are missing.
        units_reused, units_labeled: of this process's own units.
        units_missing: of the whole set; of other processes, unless `stopped_by` a signal.
        bytes: of shards; hidden_bytes: of hidden states, None where the set has none.
    """

    out: str
    status: str
    units: int
    units_reused: int
    units_labeled: int
    units_missing: int
    rows: int
    tokens: int
    labels: int
    rejects: int
    bytes: int
    hidden_bytes: int | None
    seconds: float
    stopped_by: str | None


def label(inputs: Sequence[str], config: LabelConfig, work: LabelUnits = label_units) -> RunSummary:
    """Label `inputs` into `config.out`, or resume where an earlier call stopped.

    Args:
        inputs: the input.
        config: all settings.
        work: labels the units, in this process or elsewhere.

    Raises:
        SoftshardsError: with a cause the user can act on; finished units stay.
        Interrupted: by a signal while no unit was in progress, or by a second one.
    """
    started = time.perf_counter()
    rank, world_size = config.rank, config.world_size
    with open_place(config.out, writer=config.writer) as place:
        config, source = locate_teacher(config, weights=True)
        teacher, identity = identify_teacher(
            config, weights_digest=config.weights_digest, source=source
        )
        files = find_inputs(inputs)
        with stop_on_signals() as stop, rank_lock(place, rank, world_size):
            wait_for_actors(place)
            with set_lock(place, "plan"), explain_full_disk("the plan", place.folder):
                remove_abandoned_files(place, rank, world_size)
                manifest = begin(files, config, teacher, identity)
                place.publish()
            summary = _label_own_units(config, teacher, manifest, place, stop, work)
    return dataclasses.replace(summary, seconds=round(time.perf_counter() - started, 1))


def _label_own_units(
    config: LabelConfig,
    teacher: Teacher,
    manifest: Manifest,
    place: SetPlace,
    stop: Stop,
    work: LabelUnits,
) -> RunSummary:
    own = range(config.rank, manifest.planned_units, config.world_size)
    todo = [n for n in own if finished_unit(place.folder, n, place.sizes) is None]
    forget_lost_units(place, todo)
    reused = len(own) - len(todo)
    if reused:
        err.print(f"reusing {reused} of {len(own)} units in {place.name}")
    labeled = 0
    if todo:
        with stop.finishing_units():
            labeled = work(todo, config, teacher, manifest, place, stop)
    with set_lock(place, "close"), explain_full_disk("index and manifest", place.folder):
        manifest, totals, missing = close(place.folder, changed=labeled > 0, sizes=place.sizes)
        place.publish()
    stopped = stop.signal.name if stop.signal and labeled < len(todo) else None
    if missing and not stopped:
        names = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
        err.print(
            f"rank {config.rank} of {config.world_size} has finished its {len(own)} units; "
            f"{len(missing)} of {manifest.planned_units} are left to other ranks: {names}"
        )
    return RunSummary(
        out=place.name,
        status="running" if missing else manifest.status,
        units=manifest.planned_units,
        units_reused=reused,
        units_labeled=labeled,
        units_missing=len(missing),
        rows=totals.rows,
        tokens=totals.tokens,
        labels=totals.labels,
        rejects=totals.rejects,
        bytes=totals.bytes,
        hidden_bytes=totals.hidden_bytes,
        seconds=0.0,
        stopped_by=stopped,
    )
