"""Trials in parallel, stopped early where asked: Ray Tune. Only this file uses it.

Ray's state is thrown away. A new sweep over old trials first replays their eval.jsonl to the
scheduler, so that early stopping continues as if there had been no break.
"""

# ruff: noqa: ARG002 - the signatures of callbacks are Ray's

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TypedDict

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from schemas import SoftshardsError
from schemas.ray_cluster import LOCAL, ray_cluster
from trainer.run_files import EVAL_LOG, RESULT, LogLine, read_lines
from trainer.sweep import trial_process
from trainer.sweep.cluster_nodes import require_nodes
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import STOPPED, count_tokens
from trainer.train.signals import catch_signals

REPORT_SECONDS = 2.0
"""A trial reports at least this often, and can be stopped as often."""
POLL_SECONDS = 0.1
ACTOR_RESTARTS = 3
NEVER = 10**9
"""Steps that no trial reaches."""

Event = Literal["started", "progress", "ended", "stopped", "error"]


class TrialReport(TypedDict, total=False):
    """A report of a trial to Ray.

    Attributes:
        step, kl, line: a held-out measurement, `line` being all of it.
        done, code: the trial ended, with this exit code.
        tokens: trained on so far.
    """

    step: int
    kl: float
    line: LogLine
    done: bool
    code: int
    tokens: int


Listener = Callable[[Event, Path, TrialReport], None]
"""Called with an event, the trial's folder and its last report."""


class TrainTrial(tune.Trainable):
    """A trial as Ray sees it: a process, and the lines of its eval.jsonl."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial; its process starts with the first step that has nothing to report."""
        self.folder, self.cwd = Path(config["folder"]), Path(config["cwd"])
        self.process: subprocess.Popen[bytes] | None = None
        self.reported = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial in the same actor."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for a measurement, the end, or a moment; return a `TrialReport`."""
        until = time.monotonic() + REPORT_SECONDS
        while True:
            code = None if self.process is None else self.process.poll()
            for line in read_lines(self.folder / EVAL_LOG):
                if line["step"] > self.reported:
                    self.reported = int(line["step"])
                    kl = line.get("exact_kl", line["kl"])  # as --patience and --keep-best
                    return {"step": self.reported, "kl": kl, "line": line}
            if code is not None:
                return {"done": True, "code": code}
            if any((self.folder / name).exists() for name in (RESULT, STOPPED)):
                if self.process is None:
                    return {"done": True, "code": 0}
            elif self.process is None:
                self.process = trial_process.start(self.folder, self.cwd)
            if time.monotonic() > until:
                return {"tokens": count_tokens(self.folder)}
            time.sleep(POLL_SECONDS)

    def cleanup(self) -> None:
        """Stop the process; it saves a checkpoint."""
        if self.process is not None:
            trial_process.stop(self.process)


class SignalStopper(tune.Stopper):
    """Stops all trials once a signal was caught."""

    def __init__(self, caught: list[int]) -> None:
        self.caught = caught

    def __call__(self, *_: Any) -> bool:
        """Stop no trial for its reports."""
        return False

    def stop_all(self) -> bool:
        """Return True once a signal came."""
        return bool(self.caught)


class EventCallback(tune.Callback):
    """Passes Ray's events on to a listener."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def __getstate__(self) -> dict[str, Any]:
        """Keep nothing: Ray pickles callbacks into a state that is thrown away."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Pass on that an actor took the trial."""
        self.listener("started", Path(trial.config["folder"]), {})

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        """Pass on a report."""
        self.listener("progress", Path(trial.config["folder"]), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Pass on that the trial ended by itself, or was stopped by the scheduler."""
        event: Event = "ended" if "code" in trial.last_result else "stopped"
        self.listener(event, Path(trial.config["folder"]), trial.last_result)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Pass on that the actor failed; a process that fails is not an error to Ray."""
        self.listener("error", Path(trial.config["folder"]), {})


@contextmanager
def connected(config: SweepConfig) -> Iterator[Any]:
    """Connect to Ray and yield the module; inside another such context, use its connection."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    with ray_cluster(LOCAL if config.ray is None else config.ray) as found:
        yield found


def run_trials(config: SweepConfig, folders: list[Path], grace: int, listener: Listener) -> int:
    """Run trials until all have ended; trials with a result, or stopped before, only report.

    Args:
        config: settings of the sweep.
        folders: folders of the trials, each with its trial.yaml, in the order to start them.
        grace: steps before asha may stop a trial.
        listener: called in this process for every event.

    Returns:
        0, or the number of the signal that ended it. All processes have ended then.

    Raises:
        SoftshardsError: there is no cluster, a trial needs more than any node has, or a node cannot
            run trials.
    """
    with (
        redirect_stdout(sys.stderr),  # where Ray prints that a worker died
        connected(config) as ray,
        _storage(config) as storage,
    ):
        resources = _resources(config, [n["Resources"] for n in ray.nodes() if n["Alive"]])
        folders, cwd = [folder.resolve() for folder in folders], Path.cwd()
        if config.ray not in (None, LOCAL):
            require_nodes(ray, folders[0], cwd)
        space = {
            "folder": tune.grid_search([str(folder) for folder in folders]),
            "cwd": str(cwd),
        }
        with catch_signals() as caught:
            tuner = tune.Tuner(
                tune.with_resources(TrainTrial, resources),
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=_scheduler(config, grace), metric="kl", mode="min", reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=storage,
                    stop=SignalStopper(caught),
                    callbacks=[EventCallback(listener)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    # Failures of actors: they start again, and the trial resumes.
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


def _resources(config: SweepConfig, nodes: list[dict[str, float]]) -> dict[str, float]:
    """Return the share of a trial: by default one GPU and its share of the cores, or all cores.

    Where nodes differ, "all cores" are the smallest node's.
    """
    nodes = [node for node in nodes if node.get("CPU", 0.0) >= 1] or [{"CPU": 1.0}]
    devices = max(node.get("GPU", 0.0) for node in nodes)
    gpus = (1.0 if devices else 0.0) if config.per_trial_gpus is None else config.per_trial_gpus
    if gpus and devices:
        nodes = [node for node in nodes if node.get("GPU", 0.0) >= min(gpus, devices)]
    cpus = config.per_trial_cpus
    if cpus is None:
        shares = [node["CPU"] * (gpus / node["GPU"] if gpus and devices else 1) for node in nodes]
        cpus = max(1.0, min(shares) // 1)
    cores = max(node["CPU"] for node in nodes)
    for name, needed, available in (("cpus", cpus, cores), ("gpus", gpus, devices)):
        if needed > available:
            where = "this machine" if config.ray is None else "the largest node"
            raise SoftshardsError(f"--per-trial-{name} is {needed:g}; {where} has {available:g}")
    return {"cpu": cpus, "gpu": gpus}


@contextmanager
def _storage(config: SweepConfig) -> Iterator[str]:
    """Yield a folder for Ray's state, which is thrown away; all nodes of a cluster must see it."""
    shared = None if config.ray is None else config.out.absolute()
    with tempfile.TemporaryDirectory(
        prefix=".ray-", dir=shared, ignore_cleanup_errors=True
    ) as folder:
        yield folder
