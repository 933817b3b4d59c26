"""Run the commands of a round as processes: their output passes through, and signals reach them."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic import ValidationError

from schemas import SoftshardsError
from trainer.child_process import lifeline
from trainer.console import message_console
from trainer.record import Record
from trainer.rounds.command_steps import Step
from trainer.train.signals import catch_signals

CHILD = "trainer.child_process"
POLL_SECONDS = 0.2
REFUSED = 2
"""Exit code of a command whose input or settings do not fit."""


class _Count(Record):
    rows: int


class _Report(Record):
    """What `labeler curate --json` says of the rows that are left."""

    after: _Count


class StepStopped(Exception):
    """A step ended without its work.

    Attributes:
        code: the exit code to end with: the step's, or 128 + n after signal n.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def run_step(step: Step, python: Path) -> float:
    """Run a command to its end and return the seconds that it took.

    It ends with this process, even if that is killed. SIGINT and SIGTERM are passed on once, so
    that the command saves its work.

    Args:
        step: the command.
        python: of the environment that has it.

    Raises:
        StepStopped: it failed, or a signal ended it.
        SoftshardsError: there is no such Python.
    """
    arguments = step.command()
    message_console().print(f"\n== {step.name}: {step.program} {shlex.join(arguments)}")
    started = time.monotonic()
    code = _run(step.program, arguments, python, sys.stderr.fileno())
    if code == REFUSED and step.may_select_nothing and _selects_nothing(step, arguments, python):
        step.output.unlink(missing_ok=True)  # of an earlier filter
        return time.monotonic() - started
    if code:
        raise StepStopped(128 - code if code < 0 else code)
    if not step.output.exists():
        raise SoftshardsError(f"{step.name} ended without its output", path=step.output)
    return time.monotonic() - started


def _selects_nothing(step: Step, arguments: list[str], python: Path) -> bool:
    """Return whether a refused `labeler curate` leaves no row: --dry-run then says so."""
    with tempfile.TemporaryFile() as output:
        code = _run(step.program, [*arguments, "--dry-run", "--json"], python, output.fileno())
        output.seek(0)
        try:
            return not code and _Report.model_validate_json(output.read()).after.rows == 0
        except ValidationError:
            return False


def _run(program: str, arguments: list[str], python: Path, stdout: int) -> int:
    """Run a command and return its exit code, negative for a signal."""
    with lifeline() as standard_input, catch_signals() as caught:
        try:
            process = subprocess.Popen(
                [str(python), "-m", CHILD, program, *arguments],
                stdin=standard_input,
                stdout=stdout,
                start_new_session=True,  # Ctrl-C is for the rounds, which pass it on once
            )
        except OSError as error:
            raise SoftshardsError(
                f"it cannot be started: {error}", path=python, hint="correct --labeler-python"
            ) from error
        told = False
        while True:
            try:
                code = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if caught and not told:
                    process.send_signal(caught[0])
                    told = True
        if caught:
            raise StepStopped(128 + caught[0])
    return code


def is_interruption(code: int) -> bool:
    """Return whether an exit code tells of SIGINT or SIGTERM."""
    return code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
