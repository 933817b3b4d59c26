"""`trainer sweep`: students.yaml -> students -> trials -> measurements -> leaderboard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.atomic import write_atomic
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.results import read_results
from trainer.report.layout import table_console
from trainer.sweep.grid import Sweep, Trial, read_sweep
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.sweep_dry_run import show_plan
from trainer.sweep.train_trials import train_all
from trainer.sweep.trial_folder import STOPPED, Status, status
from trainer.train.run_record import FINAL, RESULT

EVAL = "eval.json"
LEADERBOARD = "leaderboard"
FAILED = 1


def sweep(students: Path, config: SweepConfig) -> int:
    """Train, measure and rank all students that a file asks for.

    Returns:
        0, 1 where a trial failed, or 128 + n after signal n.

    Raises:
        SoftshardsError: the file, a label set or what lies in OUT does not fit.
    """
    asked = read_sweep(students, config.out)
    base = asked.trials[0].config
    labels = open_label_set(base.labels, allow_partial=base.allow_partial)
    assert base.eval_labels is not None
    open_label_set(base.eval_labels)  # refused now, not after the training
    bench = None
    if config.bench is not None:
        bench = read_results(config.bench, "results of `labeler bench`", ("models",))
    if config.dry_run:
        return show_plan(asked, labels, as_json=config.json)
    _check_early(asked.trials, config)
    config.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(config.out / ".lock", timeout=0):
            return _sweep(asked, config, labels, bench)
    except Timeout as error:
        raise SoftshardsError("another `trainer sweep` is running here", path=config.out) from error


def _sweep(
    asked: Sweep,
    config: SweepConfig,
    labels: LabelSet,
    bench: dict[str, Any] | None,
) -> int:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for each in asked.slices:
        from trainer.slice.slice_teacher import slice_teacher

        slice_teacher(each)
    states = {trial.name: _state(trial, labels, config) for trial in asked.trials}
    left = [trial for trial in asked.trials if states[trial.name] in ("new", "begun")]
    console.print(
        f"{len(asked.trials)} trials: {len(asked.trials) - len(left)} reused, "
        f"{sum(states[t.name] == 'begun' for t in left)} to go on, "
        f"{sum(states[t.name] == 'new' for t in left)} to begin"
    )
    if left:
        signal = train_all(asked.trials, left, config, labels)
        if signal:
            console.print(f"stopped by signal {signal}: the same command goes on from there")
            return 128 + signal
    return _rank(asked.trials, config, labels, bench)


def _state(trial: Trial, labels: LabelSet, config: SweepConfig) -> Status:
    """How far a trial is; without --stop-early, one that was stopped is to go on."""
    found = status(trial, labels)
    if found == "stopped" and config.stop_early == "none":
        (trial.folder / STOPPED).unlink()
        return "begun"
    return found


def _rank(
    trials: list[Trial],
    config: SweepConfig,
    labels: LabelSet,
    bench: dict[str, Any] | None,
) -> int:
    """Measure all that was trained, write and print the leaderboard; return the exit code."""
    from trainer.evaluate.measure import measure_models
    from trainer.sweep.leaderboard import groups, ranked, row, to_json
    from trainer.sweep.leaderboard_page import html, show

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    done = {
        trial.name: json.loads((trial.folder / RESULT).read_text(encoding="utf-8"))
        for trial in trials
        if status(trial, labels) == "finished"
    }
    models = tuple(trial.folder / FINAL for trial in trials if trial.name in done)
    held_out = trials[0].config.eval_labels
    assert held_out is not None, "read_sweep requires them"
    results, _ = measure_models(
        EvaluateConfig(labels=held_out, model=models, out=config.out / EVAL)
    )
    rows = ranked([row(trial, done.get(trial.name), results, bench) for trial in trials])
    found = groups(rows)
    content = to_json(rows, found, results)
    write_atomic(config.out / f"{LEADERBOARD}.json", json.dumps(content, indent=1) + "\n")
    page = html(config.title, labels.place, rows, found, results)
    write_atomic(config.out / f"{LEADERBOARD}.html", page)
    if config.json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        show(table_console(), rows, found)
    console.print(f"leaderboard: {config.out / LEADERBOARD}.html")
    failed = [each.name for each in rows if each.status == "failed"]
    if failed:
        console.print(f"{len(failed)} of {len(rows)} trials failed: {', '.join(failed)}")
    return FAILED if failed else 0


def _check_early(trials: list[Trial], config: SweepConfig) -> None:
    if config.stop_early == "none":
        return
    for trial in trials:
        if not trial.config.eval_every:
            raise SoftshardsError(
                f"--stop-early {config.stop_early}, but trial {trial.name} is not measured midway",
                hint="set eval_every under `base` (steps between two measurements)",
            )
