"""`trainer sweep`: students.yaml -> students -> trials -> measurements -> leaderboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.atomic import write_atomic
from schemas.bench_results import BenchResults, read_bench_results
from schemas.hub_model import ModelSource
from trainer.console import message_console, table_console
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.report.layout import check_matplotlib
from trainer.run_files import FINAL
from trainer.sweep.grid import Sweep, Trial, read_sweep
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.sweep_dry_run import show_plan
from trainer.sweep.train_trials import train_all
from trainer.sweep.trial_folder import STOPPED, Status, read_status
from trainer.train.run_lock import run_lock
from trainer.train.run_record import RunInputs, find_finished, locate_student, open_inputs
from trainer.train.train_config import TrainConfig

EVAL = "eval.json"
LEADERBOARD = "leaderboard"
FAILED = 1


def sweep(students: Path, config: SweepConfig) -> int:
    """Train, measure and rank the students of a file.

    Returns:
        0, 1 if a trial failed, or 128 + n after signal n.

    Raises:
        SoftshardsError: the file, a label set or the content of OUT does not fit.
    """
    asked = read_sweep(students, config.out)
    base = asked.trials[0].config
    labels = open_label_set(base.labels, allow_partial=base.allow_partial)
    assert base.eval_labels is not None
    open_label_set(base.eval_labels)  # refused now, not after the training
    bench = read_bench_results(config.bench) if config.bench is not None else None
    made = {each.out for each in asked.slices}
    dry_run = config.dry_run
    inputs = {t.name: open_trial(t.config, labels, made, dry_run=dry_run) for t in asked.trials}
    if config.dry_run:
        return show_plan(asked, inputs, as_json=config.json)
    _check_early_stopping(asked.trials, config)
    check_matplotlib()
    with run_lock(config.out, "trainer sweep"):
        return _sweep(asked, config, labels, inputs, bench)


def open_trial(
    trial: TrainConfig, labels: LabelSet, made: set[Path], *, dry_run: bool
) -> RunInputs:
    """Open the inputs of a trial; a student that the sweep makes is not looked for."""
    if trial.student in made:
        return open_inputs(trial, labels, student=ModelSource(folder=trial.student))
    return open_inputs(trial, labels, student=locate_student(trial, dry_run=dry_run))


def _sweep(
    asked: Sweep,
    config: SweepConfig,
    labels: LabelSet,
    inputs: Mapping[str, RunInputs],
    bench: BenchResults | None,
) -> int:
    console = message_console()
    for student in asked.slices:
        from trainer.slice.slice_teacher import slice_teacher

        slice_teacher(student)
    states = {trial.name: _state(trial, inputs[trial.name], config) for trial in asked.trials}
    left = [trial for trial in asked.trials if states[trial.name] in ("new", "begun")]
    console.print(
        f"{len(asked.trials)} trials: {len(asked.trials) - len(left)} reused, "
        f"{sum(states[t.name] == 'begun' for t in left)} to resume, "
        f"{sum(states[t.name] == 'new' for t in left)} to start"
    )
    if left:
        signal = train_all(asked.trials, left, config, inputs)
        if signal:
            console.print(f"stopped by signal {signal}: the same command resumes the sweep")
            return 128 + signal
    return _rank(asked.trials, config, labels, inputs, bench)


def _state(trial: Trial, inputs: RunInputs, config: SweepConfig) -> Status:
    """Return the state of a trial; without --stop-early, a stopped one resumes."""
    found = read_status(trial, inputs)
    if found == "stopped" and config.stop_early == "none":
        (trial.folder / STOPPED).unlink()
        return "begun"
    return found


def _rank(
    trials: list[Trial],
    config: SweepConfig,
    labels: LabelSet,
    inputs: Mapping[str, RunInputs],
    bench: BenchResults | None,
) -> int:
    """Measure all trained models, write and print the leaderboard; return the exit code."""
    from trainer.evaluate.evaluate_models import measure_models
    from trainer.sweep.leaderboard import group_by_seed, make_row, rank_rows, to_json
    from trainer.sweep.leaderboard_page import print_tables, render_page

    console = message_console()
    done = {}
    for trial in trials:
        if result := find_finished(inputs[trial.name]):
            done[trial.name] = result
    models = tuple(trial.folder / FINAL for trial in trials if trial.name in done)
    held_out = trials[0].config.eval_labels
    assert held_out is not None, "read_sweep requires it"
    results, _ = measure_models(
        EvaluateConfig(labels=held_out, model=models, out=config.out / EVAL)
    )
    rows = rank_rows([make_row(trial, done.get(trial.name), results, bench) for trial in trials])
    groups = group_by_seed(rows)
    content = to_json(rows, groups, results.label_set)
    write_atomic(config.out / f"{LEADERBOARD}.json", json.dumps(content, indent=1) + "\n")
    page = render_page(config.title, labels.place, rows, groups, results.label_set)
    write_atomic(config.out / f"{LEADERBOARD}.html", page)
    if config.json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        print_tables(table_console(), rows, groups)
    console.print(f"leaderboard: {config.out / LEADERBOARD}.html")
    failed = [row.name for row in rows if row.status == "failed"]
    if failed:
        console.print(f"{len(failed)} of {len(rows)} trials failed: {', '.join(failed)}")
    return FAILED if failed else 0


def _check_early_stopping(trials: list[Trial], config: SweepConfig) -> None:
    if config.stop_early == "none":
        return
    for trial in trials:
        if not trial.config.eval_every:
            raise SoftshardsError(
                f"--stop-early {config.stop_early}, but trial {trial.name} is not measured midway",
                hint="set eval_every under `base` (steps between two measurements)",
            )
