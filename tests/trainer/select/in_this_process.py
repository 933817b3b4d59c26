"""Train the trials of a rung in this process: as `train_all` does, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from schemas import SoftshardsError
from trainer.run_files import LOG, read_lines
from trainer.sweep.grid import Trial
from trainer.sweep.sweep_config import SweepConfig
from trainer.sweep.trial_folder import TRAIN_LOG, write_settings
from trainer.train.loop import train
from trainer.train.run_record import RunInputs


class Killed(BaseException):
    """Ends a selection as a kill does: nothing is tidied up."""


class InThisProcess:
    """Trains trials one after the other; `ran` has the name, first and last step of each.

    Args:
        kill_at: ends the call before that many-th trial.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.ran: list[tuple[str, int, int]] = []

    def __call__(
        self,
        trials: list[Trial],  # noqa: ARG002  # the signature of `train_all`
        left: list[Trial],
        config: SweepConfig,  # noqa: ARG002
        inputs: Mapping[str, RunInputs],
        keep: ExitStack | None,  # noqa: ARG002
    ) -> int:
        for trial in left:
            if len(self.ran) == self.kill_at:
                raise Killed
            write_settings(trial, inputs[trial.name].student)
            before = _step(trial)
            try:
                train(trial.config, inputs[trial.name])
            except SoftshardsError as error:
                (trial.folder / TRAIN_LOG).write_text(f"starting\nerror: {error}\n")
            self.ran.append((trial.name, before, _step(trial)))
        return 0


def _step(trial: Trial) -> int:
    lines = read_lines(trial.folder / LOG)
    return int(lines[-1]["step"]) if lines else 0
