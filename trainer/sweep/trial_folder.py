"""A trial's folder: all that is known of a trial, and all that lasts of a sweep. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml

from schemas import LabelSet, SoftshardsError
from schemas.atomic import write_atomic
from schemas.errors import first_line
from trainer.data.mixture import open_mixture
from trainer.sweep.grid import Trial
from trainer.train.run_record import Facts, check_same_run, read_finished, run_facts

SETTINGS = "trial.yaml"
TRAIN_LOG = "train.log"
STOPPED = "stopped.json"

Status = Literal["new", "begun", "finished", "stopped"]


def write_settings(trial: Trial) -> Path:
    """Write OUT/trials/NAME/trial.yaml, a file for `trainer train --config`."""
    content = trial.settings | {"out": str(trial.folder)}
    path = trial.folder / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# trainer train --config {path}\n"
    write_atomic(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def status(trial: Trial, labels: LabelSet) -> Status:
    """How far a trial is.

    Raises:
        SoftshardsError: what is there was trained with other settings or data, or the student is
            not there.
    """
    begun = any((trial.folder / "checkpoints").glob("step-*"))
    stopped = read_stopped(trial.folder)
    if not begun and not stopped and not (trial.folder / "result.json").is_file():
        return "new"
    try:
        facts = run_facts(trial.config, labels)
        if read_finished(trial.folder, facts):
            return "finished"
        if stopped:
            check_same_run(stopped["facts"], facts, trial.folder)
            return "stopped"
    except SoftshardsError as error:
        raise SoftshardsError(f"trial {trial.name}: {error}") from error
    return "begun"


def write_stopped(folder: Path, facts: Facts, by: str, last: dict[str, Any]) -> None:
    """Note that a scheduler stopped a trial for good.

    Args:
        last: the line of eval.jsonl that decided it.
    """
    content = {"by": by, "facts": facts, "last": last}
    write_atomic(folder / STOPPED, json.dumps(content, indent=1) + "\n")


def read_stopped(folder: Path) -> dict[str, Any] | None:
    """What `write_stopped` wrote, or None."""
    try:
        content: dict[str, Any] = json.loads((folder / STOPPED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def complete_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log that may be in the middle of a write, or not be there yet."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def tokens_seen(folder: Path) -> int:
    """Training tokens so far, by the log."""
    lines = complete_lines(folder / "log.jsonl")
    return int(lines[-1]["tokens"]) if lines else 0


def reason(folder: Path) -> str:
    """Why a trial failed, from the end of what its process printed."""
    try:
        text = (folder / TRAIN_LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it did not start"
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    errors = [line for line in lines if line.startswith("error:")]
    return first_line(Exception((errors or lines)[-1]))


def tokens_planned(trial: Trial, labels: LabelSet) -> int:
    """Training tokens of a whole trial, at most: early stopping and --max-steps make it fewer."""
    config = trial.config
    parts = open_mixture(labels, config.mix, allow_partial=config.allow_partial)
    whole = round(sum(part.labels.tokens * part.weight for part in parts) * config.epochs)
    if config.max_steps is None:
        return whole
    return min(whole, config.max_steps * config.packs_per_step * config.pack_tokens)
