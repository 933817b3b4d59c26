"""Trials side by side, stopped early where asked: Ray Tune. Only this file knows Ray.

Ray's state is thrown away. A new sweep over old trials tells the scheduler first what their
eval.jsonl says, so that early stopping goes on as if there had been no break.
"""

# ruff: noqa: ARG002 - the signatures of callbacks are Ray's

from __future__ import annotations

import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from schemas import SoftshardsError
from trainer.sweep import trial_process as process
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import STOPPED, complete_lines, tokens_seen
from trainer.train.run_record import RESULT
from trainer.train.signals import noted_signals

REPORT_SECONDS = 2.0
"""A trial reports at least this often, and can be stopped as often."""
LOOK_SECONDS = 0.1
ACTOR_RESTARTS = 3
NEVER = 10**9
"""Steps that no trial reaches."""

Event = Callable[[str, Path, dict[str, Any]], None]
"""Told of ("started" | "progress" | "ended" | "stopped" | "error", trial's folder, report)."""


class TrainTrial(tune.Trainable):
    """A trial as Ray sees it: a process, and the lines of its eval.jsonl."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial; its process starts with the first step that has nothing to tell."""
        self.folder, self.cwd = Path(config["folder"]), Path(config["cwd"])
        self.process: subprocess.Popen[bytes] | None = None
        self.reported = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial in the same actor."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for a measurement, the end, or a moment; say what happened."""
        until = time.monotonic() + REPORT_SECONDS
        while True:
            code = None if self.process is None else self.process.poll()
            for line in complete_lines(self.folder / "eval.jsonl"):
                if line["step"] > self.reported:
                    self.reported = line["step"]
                    return {"step": line["step"], "kl": line["kl"], "line": line}
            if code is not None:
                return {"done": True, "code": code}
            if any((self.folder / name).exists() for name in (RESULT, STOPPED)):
                if self.process is None:
                    return {"done": True, "code": 0}
            elif self.process is None:
                self.process = process.start(self.folder, self.cwd)
            if time.monotonic() > until:
                return {"tokens": tokens_seen(self.folder)}
            time.sleep(LOOK_SECONDS)

    def cleanup(self) -> None:
        """Stop the process; it saves a checkpoint."""
        if self.process is not None:
            process.stop(self.process)


class Asked(tune.Stopper):
    """Stops all trials once a signal was noted."""

    def __init__(self, caught: list[int]) -> None:
        self.caught = caught

    def __call__(self, *_: Any) -> bool:
        """No trial is stopped for what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether a signal came."""
        return bool(self.caught)


class Tell(tune.Callback):
    """Passes on what happens to trials."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks into a state that is thrown away."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """An actor took it."""
        self.event("started", Path(trial.config["folder"]), {})

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        """A step ended."""
        self.event("progress", Path(trial.config["folder"]), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It ended by itself, or the scheduler stopped it."""
        kind = "ended" if "code" in trial.last_result else "stopped"
        self.event(kind, Path(trial.config["folder"]), trial.last_result)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its actor failed, not its process."""
        self.event("error", Path(trial.config["folder"]), {})


def run_trials(config: SweepConfig, folders: list[Path], grace: int, event: Event) -> int:
    """Run trials until all ended; those with a result or stopped before only report.

    Args:
        folders: folders of the trials, each with its trial.yaml, in the order to begin them.
        grace: steps that asha leaves every trial.
        event: called in this process for all that happens.

    Returns:
        0, or the number of the signal that ended it. All processes have ended then.

    Raises:
        SoftshardsError: a trial needs more than the machine has.
    """
    with _ray() as (storage, machine):
        resources = _resources(config, machine)
        folders = [folder.resolve() for folder in folders]
        space = {
            "folder": tune.grid_search([str(folder) for folder in folders]),
            "cwd": str(Path.cwd()),
        }
        with noted_signals() as caught:
            tuner = tune.Tuner(
                tune.with_resources(TrainTrial, resources),
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=_scheduler(config, grace), metric="kl", mode="min", reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=storage,
                    stop=Asked(caught),
                    callbacks=[Tell(event)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    # Of actors: they start again, and the trial resumes. A process that fails
                    # is not an error to Ray.
                    failure_config=tune.FailureConfig(max_failures=ACTOR_RESTARTS),
                    verbose=0,
                ),
            )
            tuner.fit()
            return caught[0] if caught else 0


def _scheduler(config: SweepConfig, grace: int) -> TrialScheduler:
    if config.stop_early == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="step",
        max_t=NEVER,
        grace_period=grace,
        reduction_factor=config.asha_factor,
        stop_last_trials=False,
    )


def _resources(config: SweepConfig, machine: dict[str, float]) -> dict[str, float]:
    """What a trial gets: by default one GPU and its share of the cores, or all cores."""
    cores, devices = machine.get("CPU", 1.0), machine.get("GPU", 0.0)
    gpus = (1.0 if devices else 0.0) if config.per_trial_gpus is None else config.per_trial_gpus
    cpus = config.per_trial_cpus
    if cpus is None:
        cpus = max(1.0, cores * gpus // devices) if gpus and devices else cores
    for name, asked, there in (("cpus", cpus, cores), ("gpus", gpus, devices)):
        if asked > there:
            raise SoftshardsError(f"--per-trial-{name} is {asked:g}; this machine has {there:g}")
    return {"cpu": cpus, "gpu": gpus}


@contextmanager
def _ray() -> Iterator[tuple[str, dict[str, float]]]:
    """A Ray of our own on this machine; yields a folder for its state, and what it can use."""
    with tempfile.TemporaryDirectory(
        prefix="softshards-ray-", ignore_cleanup_errors=True
    ) as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 1024**2,
            _temp_dir=folder,
        )
        try:
            yield folder, ray.cluster_resources()
        finally:
            ray.shutdown()
