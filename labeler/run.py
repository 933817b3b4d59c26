"""`labeler label`: from input files to a finished label set, resumable at any moment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from labeler.begin import begin, budget, plan
from labeler.budget import Budget, rough_seconds
from labeler.config import LabelConfig
from labeler.console import err
from labeler.finalise import finalise, is_closed
from labeler.planning import Planned
from labeler.sources import find_files
from labeler.teacher import open_teacher, teacher_identity
from labeler.units import label_units
from schemas import SoftshardsError
from schemas.atomic import remove_leftovers
from schemas.journal import entry_path, read_entry


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a call of `labeler label` did; sizes are those of the whole set."""

    out: str
    status: str
    units_reused: int
    units_labeled: int
    rows: int
    tokens: int
    labels: int
    rejects: int
    bytes: int
    seconds: float


def label(inputs: Sequence[str], config: LabelConfig) -> RunSummary:
    """Label `inputs` into `config.out`, or go on where an earlier call stopped.

    Raises:
        SoftshardsError: with a cause the user can act on; whatever was finished stays.
    """
    started = time.perf_counter()
    teacher = open_teacher(config.model, max_length=config.max_length)
    files = find_files(inputs)
    with _exclusive(config.out):
        manifest = begin(files, config, teacher, teacher_identity(teacher, config))
        todo = [u for u in range(manifest.planned_units) if not _is_done(config.out, u)]
        reused = manifest.planned_units - len(todo)
        if reused:
            err.print(f"reusing {reused} of {manifest.planned_units} units in {config.out}")
        if todo:
            label_units(todo, config, teacher, manifest)
        if todo or not is_closed(config.out, manifest):
            manifest = finalise(config.out, manifest)
    totals = manifest.totals
    assert totals is not None  # finalise sets it
    return RunSummary(
        out=str(config.out),
        status=manifest.status,
        units_reused=reused,
        units_labeled=len(todo),
        rows=totals.rows,
        tokens=totals.tokens,
        labels=totals.labels,
        rejects=totals.rejects,
        bytes=totals.bytes,
        seconds=round(time.perf_counter() - started, 1),
    )


def dry_run(inputs: Sequence[str], config: LabelConfig) -> tuple[Planned, Budget, float]:
    """Plan without writing anything: the units and rejects, the bytes, and rough seconds."""
    teacher = open_teacher(config.model, max_length=config.max_length)
    identity = teacher_identity(teacher, config)
    planned = plan(find_files(inputs), config, teacher)
    work = planned.total("n_tokens")
    if config.mode == "generate":
        work += planned.total("n_labels")
    seconds = rough_seconds(config.model, identity.dtype, tokens=work)
    return planned, budget(planned, config, identity), seconds


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """One process at a time writes a label set; the system frees the lock of a killed one."""
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise SoftshardsError(
            "another process is labeling into this folder", path=out, mend="wait, or stop it"
        ) from error
    try:
        remove_leftovers(out)
        yield
    finally:
        lock.release()


def _is_done(out: Path, unit: int) -> bool:
    """Whether a unit is journaled and its shard is there, whole; one that is not is done again."""
    entry = read_entry(out, unit)
    if entry is None:
        return False
    shard = out / entry.shard
    if shard.is_file() and shard.stat().st_size == entry.bytes:
        return True
    err.print(f"{shard} is missing or cut off: unit {unit} is labeled again")
    entry_path(out, unit).unlink()
    return False
