"""`trainer rounds --dry-run`: tokens, bytes and hours of a round, before it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from schemas import SoftshardsError
from trainer.child_process import lifeline
from trainer.console import number, size, table_console
from trainer.record import Record
from trainer.rounds.prompt_files import write_prompts
from trainer.rounds.rounds_config import RoundsConfig
from trainer.rounds.rounds_file import Rounds
from trainer.rounds.rounds_record import RECORD, WHAT, RoundsRecord
from trainer.rounds.run_steps import CHILD


class Planned(Record):
    """What `labeler label --dry-run --json` says of the answers of a round."""

    rows: int
    tokens: int
    labels: int
    estimated_bytes: int
    estimated_seconds: float


class Estimate(Record):
    """What one round may take.

    Attributes:
        rounds: the most rounds.
        prompts, tokens, labels: of a round; `labels` and, with the prompts, `tokens` at most.
        bytes: of the teacher's labels, at most.
        generate_hours: of the student's answers, roughly (within a factor of three).
        round_hours: of a whole round, from the last one that is finished; None before.
    """

    rounds: int
    prompts: int
    tokens: int
    labels: int
    bytes: int
    generate_hours: float
    round_hours: float | None = None


def show_estimate(asked: Rounds, config: RoundsConfig, python: Path) -> int:
    """Print the estimate; nothing is written to OUT.

    Raises:
        SoftshardsError: the prompts cannot be read, or the student cannot answer them.
    """
    with tempfile.TemporaryDirectory() as folder:
        first, *_, apart = write_prompts(Path(folder), asked)
        planned = _plan(asked, (first, apart), Path(folder), python)
    estimate = Estimate(
        rounds=asked.rounds,
        prompts=planned.rows,
        tokens=planned.tokens + planned.labels,
        labels=planned.labels,
        bytes=planned.estimated_bytes,
        generate_hours=planned.estimated_seconds / 3600,
        round_hours=_measured_hours(config.out),
    )
    if config.json:
        sys.stdout.write(estimate.to_json())
        return 0
    console = table_console()
    hours = estimate.round_hours
    for name, text in (
        ("rounds", f"at most {estimate.rounds}"),
        ("prompts", f"{estimate.prompts} per round, held-out ones included"),
        ("tokens", f"at most {size(estimate.tokens, '')} per round, {estimate.labels} generated"),
        ("labels", f"at most {size(estimate.bytes, 'B')} per round"),
        ("answering", f"roughly {number(estimate.generate_hours, 2)} h per round"),
        (
            "a round",
            "known when one is finished"
            if hours is None
            else f"{number(hours, 2)} h, like the last one",
        ),
    ):
        console.print(f"{name:<12}{text}", highlight=False)
    console.print("nothing was written (--dry-run)")
    return 0


def _plan(asked: Rounds, prompts: tuple[Path, ...], folder: Path, python: Path) -> Planned:
    """Let the labeler plan the answers; their labels have as many ids as the teacher's will."""
    width = asked.flags("score")["k"]
    assert isinstance(width, int), "read_rounds checks it"
    flags = asked.flags("generate") | {"k": width + asked.ids}
    file = folder / "generate.yaml"
    file.write_text(json.dumps(flags), encoding="utf-8")
    command = ["label", *map(str, prompts), "--model", asked.student, "--mode", "generate"]
    command += ["--out", str(folder / "answers"), "--config", str(file), "--dry-run", "--json"]
    with lifeline() as standard_input:
        done = subprocess.run(
            [str(python), "-m", CHILD, "labeler", *command],
            stdin=standard_input,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    try:
        return Planned.model_validate_json(done.stdout)
    except ValidationError as error:
        raise SoftshardsError(
            "the answers cannot be planned: see the message above", path=asked.prompts
        ) from error


def _measured_hours(out: Path) -> float | None:
    path = out / RECORD
    if not path.exists():
        return None
    finished = RoundsRecord.read(path, WHAT).rounds
    trained = [each for each in finished if each.trained]
    return sum(trained[-1].seconds.values()) / 3600 if trained else None
