"""Training what is left of a sweep, and telling how it goes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas import LabelSet, SoftshardsError
from trainer.console import ProgressBar
from trainer.sweep.grid import Trial
from trainer.sweep.ray_environment import prepare_ray
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import tokens_planned, tokens_seen, write_settings, write_stopped
from trainer.train.run_record import run_facts


def train_all(trials: list[Trial], left: list[Trial], config: SweepConfig, labels: LabelSet) -> int:
    """Train the trials that are left, in their order.

    Returns:
        0 when all ended (well or not), else the number of the signal that stopped them.

    Raises:
        SoftshardsError: Ray is not installed, or a trial needs more than the machine has.
    """
    if find_spec("ray") is None:
        raise SoftshardsError("Ray is not installed", hint="pip install 'softshards[sweep]'")
    prepare_ray()
    from trainer.sweep.schedule import run_trials

    for trial in left:
        write_settings(trial)
    # A scheduler that compares trials must know of those that ended before.
    ended = [trial for trial in trials if trial not in left] if config.stop_early != "none" else []
    grace = config.asha_grace or min(trial.config.eval_every for trial in trials) or 1
    planned = {trial.name: tokens_planned(trial, labels) for trial in left}
    seen = {trial.name: min(tokens_seen(trial.folder), planned[trial.name]) for trial in left}
    trial_of = {trial.folder.resolve(): trial for trial in trials}
    bar = ProgressBar("sweep, tokens", sum(planned.values()), sum(seen.values()))

    def tell(event: str, folder: Path, report: dict[str, Any]) -> None:
        trial = trial_of[folder]
        if trial.name not in planned:
            return
        if event == "stopped":
            write_stopped(
                trial.folder, run_facts(trial.config, labels), config.stop_early, report["line"]
            )
        now = planned[trial.name]
        if event in ("started", "progress"):
            now = min(now, max(seen[trial.name], report.get("tokens", 0)))
        if now > seen[trial.name]:
            bar.advance(now - seen[trial.name], trial.name)
            seen[trial.name] = now
        text = _text(event, report, config)
        if text:
            line = f"{trial.name}: {text}"
            bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    bar.console.print("starting Ray", highlight=False)
    with bar:
        return run_trials(config, [trial.folder for trial in [*ended, *left]], grace, tell)


def _text(event: str, report: dict[str, Any], config: SweepConfig) -> str | None:
    """What is worth a line."""
    if event == "progress":
        return f"step {report['step']}, held-out KL {report['kl']:.4f}" if "kl" in report else None
    if event == "ended":
        return "trained" if report["code"] == 0 else f"failed, exit code {report['code']}"
    if event == "stopped":
        return f"stopped by {config.stop_early} after step {report['line']['step']}"
    return "started" if event == "started" else "failed, its actor died"
