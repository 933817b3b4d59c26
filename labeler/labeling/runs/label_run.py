"""`labeler label`: from input files to a finished label set, resumable at any moment."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labeler.console import err
from labeler.labeling.inputs.read_records import find_files
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.planning.budget import Budget, engine_memory, require_memory
from labeler.labeling.planning.cut import Planned
from labeler.labeling.runs.begin import begin, budget, planning
from labeler.labeling.runs.label_units import label_units
from labeler.labeling.runs.locks import one_at_a_time, own_rank, remove_leftovers_if_alone
from labeler.labeling.runs.stopping import Stop, stop_on_signals
from labeler.labeling.runs.timing import Timing, measured_timing, rough_timing
from labeler.labeling.teacher.teacher import Teacher, open_teacher, teacher_identity
from labeler.labeling.writing.finalize import close
from schemas import Manifest
from schemas.journal import entry_path, read_entry, shard_is_whole
from schemas.os_errors import full_disk_explained


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a call of `labeler label` did; sizes are those of the whole set, as far as it is done.

    Attributes:
        status: `complete`, or `running` where units are missing.
        units_reused, units_labeled: of this process's own units.
        units_missing: of the whole set; other processes', unless `stopped_by` a signal.
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
    seconds: float
    stopped_by: str | None


def label(inputs: Sequence[str], config: LabelConfig) -> RunSummary:
    """Label `inputs` into `config.out`, or go on where an earlier call stopped.

    Raises:
        SoftshardsError: with a cause the user can act on; whatever was finished stays.
        Interrupted: by a signal while no unit was in work, or by a second one.
    """
    started = time.perf_counter()
    teacher = open_teacher(
        config.model, max_length=config.max_length, chat_template=config.chat_template
    )
    identity = teacher_identity(teacher, config)
    files = find_files(inputs)
    with stop_on_signals() as stop, own_rank(config.out, config.rank, config.world_size):
        with one_at_a_time(config.out, "plan"), full_disk_explained("the plan", config.out):
            remove_leftovers_if_alone(config.out, config.rank, config.world_size)
            manifest = begin(files, config, teacher, identity)
        summary = _label_own_units(config, teacher, manifest, stop)
    return dataclasses.replace(summary, seconds=round(time.perf_counter() - started, 1))


def _label_own_units(
    config: LabelConfig, teacher: Teacher, manifest: Manifest, stop: Stop
) -> RunSummary:
    out = config.out
    own = range(config.rank, manifest.planned_units, config.world_size)
    todo = [unit for unit in own if not _is_done(out, unit)]
    reused = len(own) - len(todo)
    if reused:
        err.print(f"reusing {reused} of {len(own)} units in {out}")
    labeled = 0
    if todo:
        step = manifest.provenance["max_batched_tokens"]
        memory = engine_memory(config, manifest.identity, batched_tokens=step)
        require_memory(memory, config.model)
        with stop.finishing_units():
            labeled = label_units(todo, config, teacher, manifest, stop)
    with one_at_a_time(out, "close"), full_disk_explained("index and manifest", out):
        manifest, totals, missing = close(out, changed=labeled > 0)
    stopped = stop.signal.name if stop.signal and labeled < len(todo) else None
    if missing and not stopped:
        names = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
        err.print(
            f"rank {config.rank} of {config.world_size} has done its {len(own)} units; "
            f"{len(missing)} of {manifest.planned_units} are missing, for other ranks to label: "
            f"{names}"
        )
    return RunSummary(
        out=str(out),
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
        seconds=0.0,
        stopped_by=stopped,
    )


def dry_run(
    inputs: Sequence[str], config: LabelConfig, *, calibrate: bool = False
) -> tuple[Planned, Budget, Timing]:
    """Plan without writing to `config.out`: the plan in numbers, bytes and memory, and the time.

    Args:
        inputs: what to label; config: how.
        calibrate: load the teacher and measure its speed on a few rows.
    """
    teacher = open_teacher(
        config.model, max_length=config.max_length, chat_template=config.chat_template
    )
    identity = teacher_identity(teacher, config)
    files = find_files(inputs)
    with (
        tempfile.TemporaryDirectory() as folder,
        planning(files, config, teacher, Path(folder) / "plan.sqlite") as planned,
    ):
        cost = budget(planned, config, identity)
        if calibrate:
            require_memory(cost.memory, config.model)
            step = cost.memory.batched_tokens
            timing = measured_timing(planned, config, teacher, identity, batched_tokens=step)
        else:
            timing = rough_timing(planned, config, identity)
        return planned, cost, timing


def _is_done(out: Path, unit: int) -> bool:
    """Whether a unit is journaled and its shard is there, whole; one that is not is done again."""
    entry = read_entry(out, unit)
    if entry is None:
        return False
    if shard_is_whole(out, entry):
        return True
    err.print(f"{out / entry.shard} is missing or cut off: unit {unit} is labeled again")
    entry_path(out, unit).unlink()
    return False
