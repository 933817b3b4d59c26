"""`trainer rounds`: rounds.yaml -> answers -> labels -> students, round after round."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from schemas import SoftshardsError
from schemas.manifest import differences
from trainer.console import message_console, table_console
from trainer.rounds.command_steps import RoundFolder, answer_steps, train_steps
from trainer.rounds.estimate import show_estimate
from trainer.rounds.prompt_files import write_prompts
from trainer.rounds.round_table import print_rounds
from trainer.rounds.rounds_config import RoundsConfig
from trainer.rounds.rounds_file import Rounds, read_rounds
from trainer.rounds.rounds_record import RECORD, WHAT, RoundsRecord, gather_round
from trainer.rounds.run_steps import StepStopped, is_interruption, run_step
from trainer.train.run_lock import run_lock

PROMPTS = "prompts"


def rounds(file: Path, config: RoundsConfig) -> int:
    """Run or resume the rounds of a file.

    Returns:
        0, or the exit code of the command that failed or was interrupted.

    Raises:
        SoftshardsError: the file, the prompts or the content of OUT does not fit.
    """
    asked = read_rounds(file)
    pythons = {"trainer": Path(sys.executable), "labeler": _labeler_python(asked, config)}
    if config.dry_run:
        return show_estimate(asked, config, pythons["labeler"])
    with run_lock(config.out, "trainer rounds"):
        record = _open_record(asked, config.out)
        *prompts, apart = write_prompts(config.out / PROMPTS, asked)
        try:
            while (stopped := _stop_reason(asked, record)) is None:
                number = len(record.rounds)
                if record.rounds and not record.rounds[-1].trained:
                    _train(asked, config.out, record, pythons)
                elif number < asked.rounds:
                    here = RoundFolder(out=config.out, number=number)
                    _measure(asked, here, record, (prompts[number], apart), pythons)
                else:
                    here = RoundFolder(out=config.out, number=number, last=True)
                    _measure(asked, here, record, (apart,), pythons)
        except StepStopped as ended:
            return _stopped(ended.code)
        record.stopped = stopped
        record.write(config.out / RECORD)
    if config.json:
        sys.stdout.write(json.dumps(record.to_dict(), indent=1) + "\n")
    else:
        print_rounds(table_console(), record)
    return 0


def _labeler_python(asked: Rounds, config: RoundsConfig) -> Path:
    if config.labeler_python is not None:
        return config.labeler_python
    engines = {section.get("engine", "vllm") for section in (asked.generate, asked.score)}
    if "vllm" in engines and find_spec("vllm") is None:
        raise SoftshardsError(
            "the student answers, and the teacher labels, in vLLM, which is not installed here",
            hint="pass --labeler-python with the Python of the environment that has it",
        )
    return Path(sys.executable)


def _open_record(asked: Rounds, out: Path) -> RoundsRecord:
    """Return the rounds that are finished.

    Raises:
        SoftshardsError: they were made with other settings.
    """
    path, settings = out / RECORD, asked.decisive()
    if not path.exists():
        return RoundsRecord(settings=settings)
    record = RoundsRecord.read(path, WHAT)
    if record.settings != settings:
        if not any(each.trained for each in record.rounds):
            return RoundsRecord(settings=settings)  # the commands refuse what does not fit
        lines = differences(found=record.settings, asked=settings)
        raise SoftshardsError(
            f"these rounds were made with other settings:{lines}",
            path=path,
            hint="give another --out, or the original settings; `rounds` and `patience` may change",
        )
    record.stopped = None
    last = record.rounds[-1] if record.rounds else None
    if last is not None and not last.answers and last.number < asked.rounds:
        record.rounds.pop()  # more rounds are wanted: the student answers all prompts now
    return record


def _measure(
    asked: Rounds,
    here: RoundFolder,
    record: RoundsRecord,
    prompts: tuple[Path, ...],
    pythons: dict[str, Path],
) -> None:
    """Let the student of a round answer, the teacher label, and measure the student.

    A step is done if the record has it and its output is there. Killed between the two, it runs
    again, as does a filter that left nothing: the commands reuse what is finished.
    """
    what = "the last student" if here.last else f"of {asked.rounds}"
    message_console().print(f"\nround {here.number}, {what}")
    for step in answer_steps(asked, here, prompts):
        if step.name not in record.seconds or not step.output.exists():
            record.seconds[step.name] = run_step(step, pythons[step.program])
            record.write(here.out / RECORD)
    record.rounds.append(gather_round(asked, here, record.seconds))
    record.seconds = {}
    record.best = min(record.rounds, key=lambda each: each.kl).student
    record.write(here.out / RECORD)


def _train(asked: Rounds, out: Path, record: RoundsRecord, pythons: dict[str, Path]) -> None:
    """Train the next student on the labels of the round that was measured last."""
    current = record.rounds[-1]
    for step in train_steps(asked, out, current.number):
        if step.name not in current.seconds or not step.output.exists():
            current.seconds[step.name] = round(run_step(step, pythons[step.program]), 1)
            record.write(out / RECORD)
    current.trained = True
    record.write(out / RECORD)


def _stop_reason(asked: Rounds, record: RoundsRecord) -> str | None:
    """Return why no round follows the last measurement; None if one does."""
    if not record.rounds or record.rounds[-1].trained:
        return None
    if len(record.rounds) > asked.rounds:
        return f"{len(record.rounds) - 1} rounds"
    last = record.rounds[-1]
    if last.answers and not last.kept:
        return f"{len(record.rounds) - 1} rounds: the filter left no answer of round {last.number}"
    without = record.rounds_without_gain()
    if asked.patience and without >= asked.patience:
        best = len(record.rounds) - 1 - without
        return f"{len(record.rounds) - 1} rounds: KL is not lower than before round {best}"
    return None


def _stopped(code: int) -> int:
    what = "interrupted" if is_interruption(code) else "the command above failed: see its message"
    message_console().print(f"{what}; the same `trainer rounds` resumes")
    return code
