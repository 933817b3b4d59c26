"""Train the unfinished trials of a sweep, and print their progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.ray_cluster import LOCAL, require_ray
from trainer.console import ProgressBar
from trainer.run_files import EVAL_LOG, read_lines
from trainer.sweep.grid import Trial
from trainer.sweep.ray_environment import prepare_tune
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import (
    STOPPED,
    Stopped,
    count_tokens,
    planned_tokens,
    write_settings,
)
from trainer.train.run_record import HeldOutRecord, RunInputs

if TYPE_CHECKING:
    from trainer.sweep.schedule import Event, TrialReport


def train_all(
    trials: list[Trial],
    left: list[Trial],
    config: SweepConfig,
    inputs: Mapping[str, RunInputs],
    keep: ExitStack | None = None,
) -> int:
    """Train the unfinished trials, in their order.

    Args:
        trials: all trials.
        left: the unfinished ones among them.
        config: settings of the sweep.
        inputs: label sets and facts by the trial's name.
        keep: keeps Ray for the next call.

    Returns:
        0 when all ended (well or not), else the number of the signal that stopped them.

    Raises:
        SoftshardsError: Ray is not installed, or a trial needs more than a node has.
    """
    require_ray("sweep")
    if not _is_connected():  # our own Ray keeps the token that it was started with
        prepare_tune(LOCAL if config.ray is None else config.ray)
    from trainer.sweep.schedule import connected, run_trials

    for trial in left:
        write_settings(trial, inputs[trial.name].student)
    # A scheduler that compares trials must also know those that ended before.
    ended = [trial for trial in trials if trial not in left] if config.stop_early != "none" else []
    grace = config.asha_grace or min(trial.config.eval_every for trial in trials) or 1
    planned = {trial.name: planned_tokens(inputs[trial.name]) for trial in left}
    seen = {trial.name: min(count_tokens(trial.folder), planned[trial.name]) for trial in left}
    known = {trial.name: _count_measurements(trial.folder) for trial in left}
    trial_of = {trial.folder.resolve(): trial for trial in trials}
    bar = ProgressBar("sweep, tokens", sum(planned.values()), sum(seen.values()))

    def on_event(event: Event, folder: Path, report: TrialReport) -> None:
        trial = trial_of[folder]
        if trial.name not in planned:
            return
        if event == "stopped":
            last = HeldOutRecord.model_validate(report["line"])
            facts = inputs[trial.name].facts
            record = Stopped(by=config.stop_early, facts=facts, last=last)
            record.write(trial.folder / STOPPED)
        now = planned[trial.name]
        if event in ("started", "progress"):
            now = min(now, max(seen[trial.name], report.get("tokens", 0)))
        if now > seen[trial.name]:
            bar.advance(now - seen[trial.name], trial.name)
            seen[trial.name] = now
        if event == "progress" and "kl" in report and known[trial.name]:  # replayed
            known[trial.name] -= 1
            return
        text = _text(event, report, config.stop_early)
        if text:
            line = f"{trial.name}: {text}"
            bar.console.print(line)

    bar.console.print("starting Ray" if config.ray is None else f"connecting to Ray: {config.ray}")
    if keep is not None:
        with redirect_stdout(sys.stderr):
            keep.enter_context(connected(config))
    with bar:
        return run_trials(config, [trial.folder for trial in [*ended, *left]], grace, on_event)


def _count_measurements(folder: Path) -> int:
    """Return how many measurements Ray is told of: not the one before the first step."""
    return sum(line["step"] > 0 for line in read_lines(folder / EVAL_LOG))


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _text(event: Event, report: TrialReport, scheduler: str) -> str | None:
    """Return the line to print for an event, if it deserves one."""
    match event:
        case "started":
            return "started"
        case "progress":
            is_measured = "kl" in report
            return f"step {report['step']}, held-out KL {report['kl']:.4f}" if is_measured else None
        case "ended":
            return "ended" if report["code"] == 0 else f"failed, exit code {report['code']}"
        case "stopped":
            return f"stopped by {scheduler} after step {report['line']['step']}"
        case "error":
            return "failed, its actor died"
