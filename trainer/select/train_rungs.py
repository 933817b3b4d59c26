"""Train the candidates rung by rung, and decide after each who is trained further.

Decisions follow from the logs of the trials alone. So a selection that was killed makes them again,
and trains only what is missing. What else decides, such as the candidates, is in OUT/rungs.json.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from schemas import SoftshardsError
from schemas.manifest import differences
from trainer.console import message_console
from trainer.run_files import (
    CHECKPOINTS,
    EVAL_LOG,
    LOG,
    RESULT,
    LogLine,
    checkpoint_folders,
    checkpoint_name,
    read_lines,
)
from trainer.select.forecast import Forecast, forecast
from trainer.select.rungs import Rung, eliminate
from trainer.select.select_record import Decisive, Failed
from trainer.sweep.grid import Trial
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import STOPPED, Stopped, failure_reason, read_status, read_stopped
from trainer.train.run_record import HeldOutRecord, RunInputs

FAILED = "failed.json"
RUNGS = "rungs.json"

Train = Callable[
    [list[Trial], list[Trial], SweepConfig, Mapping[str, RunInputs], ExitStack | None], int
]
"""`trainer.sweep.train_trials.train_all`, or what trains the same trials without Ray."""


@dataclass(kw_only=True)
class Outcomes:
    """What became of the candidates, by name.

    Attributes:
        out: why a candidate was eliminated. failed: why it failed.
        forecasts: those of each rung's end: the step, and the forecast.
        finalists: the candidates that were trained to the last step, best first.
    """

    out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    forecasts: dict[str, list[tuple[int, Forecast]]] = field(default_factory=dict)
    finalists: list[str] = field(default_factory=list)


def require_same_rungs(out: Path, asked: Decisive) -> None:
    """Refuse other candidates, rungs or probes than those of the selection in OUT.

    Decisions are made again at every call: other ones could keep candidates whose checkpoints are
    gone.

    Raises:
        SoftshardsError: with one line per difference.
    """
    path = out / RUNGS
    if not path.exists():
        return
    found = Decisive.read(path, "rungs of `trainer select`")
    if lines := differences(found=found.lines(), asked=asked.lines()):
        raise SoftshardsError(
            f"the selection here has other candidates, rungs or probes:{lines}",
            path=path,
            hint="give another --out, or the original file",
        )


def begin_rungs(
    out: Path, asked: Decisive, trials: list[Trial], inputs: Mapping[str, RunInputs]
) -> None:
    """Check that OUT holds no other selection and no other runs, and write OUT/rungs.json.

    Raises:
        SoftshardsError: it does; with one line per difference.
    """
    require_same_rungs(out, asked)
    for trial in trials:
        read_status(trial, inputs[trial.name])  # refuses other settings
    asked.write(out / RUNGS)


def train_rungs(
    trials: list[Trial],
    rungs: list[Rung],
    metric: str,
    config: SweepConfig,
    inputs: Mapping[str, RunInputs],
    train: Train,
) -> Outcomes | int:
    """Train all candidates of each rung, and eliminate some; call `begin_rungs` before.

    Args:
        trials: the candidates, with the settings of the whole run.
        rungs: steps and numbers of candidates.
        metric: that ranks them, `kl` or `ce`.
        config: of the sweep that trains them.
        inputs: label sets and facts by the candidate's name.
        train: trains the trials of a rung to their pause.

    Returns:
        The outcomes, or the number of the signal that stopped the training.

    Raises:
        SoftshardsError: all candidates failed.
    """
    found = Outcomes()
    alive = list(trials)
    with ExitStack() as keep:
        for number, rung in enumerate(rungs):
            left = [trial for trial in alive if not _is_done(trial, rung, rungs)]
            message_console().print(
                f"rung {number + 1} of {len(rungs)}: {len(alive)} candidates to step {rung.step}, "
                f"{len(alive) - len(left)} of them are there"
            )
            if left:
                pause = rung.step if rung is not rungs[-1] else None
                paused = [_paused(trial, pause) for trial in left]
                of = {t.name: replace(inputs[t.name], config=t.config) for t in paused}
                if signal := train(paused, paused, config, of, keep):
                    return signal
            values = _values(alive, rung, metric, found)
            alive = [trial for trial in alive if trial.name in values]
            if not alive:
                raise SoftshardsError(
                    "no candidate is left, all failed:"
                    + "".join(f"\n  {name}: {why}" for name, why in found.failed.items()),
                    hint=f"to try one again, delete its {FAILED}",
                )
            if rung is rungs[-1]:
                found.finalists = sorted(values, key=lambda name: (values[name], name))
            else:
                alive = _decide(alive, rung, rungs, number, values, metric, found, inputs)
    return found


def read_curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return step and metric of a trial's measurements."""
    return [(int(line["step"]), _metric(line, metric)) for line in read_lines(folder / EVAL_LOG)]


def tokens_at(folder: Path, step: int) -> int:
    """Return the tokens that a trial was trained on up to a step."""
    lines = [line for line in read_lines(folder / LOG) if line["step"] <= step]
    return int(lines[-1]["tokens"]) if lines else 0


def _metric(line: LogLine, metric: str) -> float:
    return HeldOutRecord.model_validate(line).closest if metric == "kl" else line["ce"]


def _is_done(trial: Trial, rung: Rung, rungs: list[Rung]) -> bool:
    """Return True if a trial was measured at a rung, or failed, and need not run for it."""
    if _read_failed(trial.folder) is not None or _has_ended(trial.folder):
        return True
    if rung is rungs[-1] or not any(s == rung.step for s, _ in read_curve(trial.folder, "ce")):
        return False
    # It is measured before it is saved: killed in between, it would resume from an older step.
    saved = checkpoint_folders(trial.folder)
    return bool(saved) and saved[-1].name >= checkpoint_name(rung.step)


def _has_ended(folder: Path) -> bool:
    """Return True if a trial was trained to its end, or eliminated: it is not trained further."""
    return (folder / RESULT).exists() or (folder / STOPPED).exists()


def _read_failed(folder: Path) -> Failed | None:
    path = folder / FAILED
    return Failed.read(path, "the record of a failed candidate") if path.exists() else None


def _paused(trial: Trial, step: int | None) -> Trial:
    """Return a trial that ends at a rung; the last rung is its own end."""
    if step is None:
        return trial
    settings = trial.settings | {"pause_after": step}
    return replace(trial, settings=settings, config=replace(trial.config, pause_after=step))


def _values(trials: list[Trial], rung: Rung, metric: str, found: Outcomes) -> dict[str, float]:
    """Return the metric of each trial at a rung; those without one have failed."""
    values = {}
    for trial in trials:
        record = _read_failed(trial.folder)
        value = dict(read_curve(trial.folder, metric)).get(rung.step)
        if record is not None and record.step > rung.step:
            record = None  # it failed later
        if record is None and value is not None and math.isfinite(value):
            values[trial.name] = value
            continue
        if record is None and value is None and _has_ended(trial.folder):
            found.failed[trial.name] = f"its run ended without a measurement after step {rung.step}"
            continue
        if record is None:
            reason = failure_reason(trial.folder)
            if value is not None:
                reason = f"its held-out {metric} is {value} after step {rung.step}"
            record = Failed(step=rung.step, reason=reason)
            record.write(trial.folder / FAILED)
            message_console().print(f"{trial.name}: failed: {reason}")
        found.failed[trial.name] = record.reason
    return values


def _decide(
    alive: list[Trial],
    rung: Rung,
    rungs: list[Rung],
    number: int,
    values: Mapping[str, float],
    metric: str,
    found: Outcomes,
    inputs: Mapping[str, RunInputs],
) -> list[Trial]:
    """Eliminate candidates after a rung; return the others."""
    here = {}
    for trial in alive:
        warm = warm_up_steps(trial, rungs[-1].step)
        curve = read_curve(trial.folder, metric)
        points = [(s, v) for s, v in curve if warm < s <= rung.step]
        if made := forecast([s for s, _ in points], [v for _, v in points], rungs[-1].step):
            here[trial.name] = made
            found.forecasts.setdefault(trial.name, []).append((rung.step, made))
    out = eliminate(values, here, rungs[number + 1].candidates)
    for trial in alive:
        if (reason := out.get(trial.name)) is None:
            continue
        found.out[trial.name] = f"after step {rung.step}: {reason}"
        if read_stopped(trial.folder) is None:
            lines = {int(line["step"]): line for line in read_lines(trial.folder / EVAL_LOG)}
            last = HeldOutRecord.model_validate(lines[rung.step])
            facts = inputs[trial.name].facts
            stopped = Stopped(by="select", facts=facts, last=last, reason=reason)
            stopped.write(trial.folder / STOPPED)
            message_console().print(f"{trial.name}: eliminated {found.out[trial.name]}")
        shutil.rmtree(trial.folder / CHECKPOINTS, ignore_errors=True)
    return [trial for trial in alive if trial.name not in out]


def warm_up_steps(trial: Trial, steps: int) -> float:
    """Return the steps in which the learning rate rises."""
    warmup = trial.config.warmup
    return warmup if warmup >= 1 else round(warmup * steps)
