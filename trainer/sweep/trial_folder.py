"""The folder of a trial: everything that outlives a sweep. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from schemas.errors import first_line
from schemas.hub_model import ModelSource
from trainer.record import Record
from trainer.run_files import LOG, META, RESULT, checkpoint_folders, read_lines
from trainer.sweep.grid import Trial
from trainer.train.checkpoint_meta import CheckpointMeta
from trainer.train.run_record import (
    Facts,
    HeldOutRecord,
    RunInputs,
    check_same_run,
    find_finished,
)

SETTINGS = "trial.yaml"
TRAIN_LOG = "train.log"
STOPPED = "stopped.json"

Status = Literal["new", "begun", "finished", "stopped"]


class Stopped(Record):
    """stopped.json: a scheduler stopped the trial for good.

    Attributes:
        by: the scheduler, or `select`.
        reason: why, where more than its rule is known.
        facts: the run's.
        last: the held-out measurement that decided it.
    """

    by: str
    facts: Facts
    last: HeldOutRecord
    reason: str | None = None


def write_settings(trial: Trial, student: ModelSource | None = None) -> Path:
    """Write OUT/trials/NAME/trial.yaml, a file for `trainer train --config`.

    Args:
        trial: the trial.
        student: where its student comes from: one of the Hub is written with its commit.
    """
    path = trial.folder / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# trainer train --config {path}\n"
    write_atomic(path, head + settings_yaml(trial, student, trial.folder))
    return path


def settings_yaml(trial: Trial, student: ModelSource | None, out: Path) -> str:
    """Return the settings of a trial for `trainer train --config`, with another --out."""
    named = student.as_json() if student else {}
    pinned = {"student": named["name"], "revision": named["commit"]} if named else {}
    content = trial.settings | pinned | {"out": str(out)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_status(trial: Trial, inputs: RunInputs) -> Status:
    """Return the state of a trial.

    Raises:
        SoftshardsError: the run in its folder has other settings or data, or the student is
            missing.
    """
    has_checkpoint = bool(checkpoint_folders(trial.folder))
    stopped = read_stopped(trial.folder)
    if not has_checkpoint and not stopped and not (trial.folder / RESULT).is_file():
        return "new"
    try:
        if find_finished(inputs):
            return "finished"
        if stopped:
            check_same_run(stopped.facts, inputs.facts, trial.folder)
            return "stopped"
        _check_checkpoint(trial.folder, inputs.facts)
    except SoftshardsError as error:
        raise SoftshardsError(f"trial {trial.name}: {error}") from error
    return "begun"


def _check_checkpoint(folder: Path, facts: Facts) -> None:
    """Check the facts of the newest checkpoint; of a damaged one, the run itself tells."""
    for path in reversed(checkpoint_folders(folder)):
        try:
            found = CheckpointMeta.read(path / META, "a checkpoint")
        except SoftshardsError:
            continue
        check_same_run(found.facts, facts, folder)
        return


def read_stopped(folder: Path) -> Stopped | None:
    """Return the record of a stopped trial, or None."""
    try:
        return Stopped.read(folder / STOPPED, "the record of a stopped trial")
    except SoftshardsError:
        return None


def count_tokens(folder: Path) -> int:
    """Return the training tokens so far, by the log."""
    lines = read_lines(folder / LOG)
    return int(lines[-1]["tokens"]) if lines else 0


def planned_tokens(inputs: RunInputs) -> int:
    """Return the training tokens of a trial, to its pause if it has one; it may stop earlier."""
    config = inputs.config
    whole = round(sum(part.labels.tokens * part.weight for part in inputs.parts) * config.epochs)
    steps = config.pause_after or config.max_steps
    if steps is None:
        return whole
    return min(whole, steps * config.packs_per_step * config.pack_tokens)


def failure_reason(folder: Path) -> str:
    """Return the reason of a failure, from the end of the process's output."""
    try:
        text = (folder / TRAIN_LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it did not start"
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    errors = [line for line in lines if line.startswith("error:")]
    return first_line(Exception((errors or lines)[-1]))
