"""The commands of a round: the student answers, the teacher labels, the student is measured and
trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trainer.rounds.prompt_files import HELD_OUT
from trainer.rounds.rounds_file import Flags, Rounds
from trainer.run_files import FINAL

Program = Literal["labeler", "trainer"]

IS_HELD_OUT = f"starts_with(id, '{HELD_OUT}')"
SMALLEST_WEIGHT = 0.01
"""Labels of older rounds that would count less are left out."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command to run.

    Attributes:
        name: of the step, for people and for the record.
        program, arguments: the command, without the flags of a section.
        flags: the flags of the section, for --config.
        output: the file or folder that it makes.
        may_select_nothing: it then makes no output.
    """

    name: str
    program: Program
    arguments: tuple[str, ...]
    flags: Flags
    output: Path
    may_select_nothing: bool = False

    def command(self) -> list[str]:
        """Return the arguments with the file of flags, which is written now."""
        if not self.flags:
            return [*self.arguments]
        file = self.output.parent / f"{self.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.flags, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
        return [*self.arguments, "--config", str(file)]


@dataclass(frozen=True, kw_only=True)
class RoundFolder:
    """OUT/round-N and what is in it; of a student that is only measured, OUT/last-N."""

    out: Path
    number: int
    last: bool = False

    @property
    def path(self) -> Path:
        """The folder."""
        return self.out / f"{'last' if self.last else 'round'}-{self.number}"

    @property
    def held_out_answers(self) -> Path:
        """The answers to held-out prompts: a view, or the last answers, which are all such."""
        if self.last:
            return self.answers
        return self.path / "held-out.view.json"

    @property
    def answers(self) -> Path:
        """Label set of the student's answers, with its own top-k."""
        return self.path / "answers"

    @property
    def labels(self) -> Path:
        """Label set of the teacher's labels on these answers."""
        return self.path / "labels"

    @property
    def train_labels(self) -> Path:
        """View of the labels to train on."""
        return self.path / "train-labels.view.json"

    @property
    def held_out_labels(self) -> Path:
        """The labels to measure on: likewise."""
        if self.last:
            return self.labels
        return self.path / "held-out-labels.view.json"

    @property
    def measured(self) -> Path:
        """Results of the student that answered."""
        return self.path / "eval.json"

    @property
    def trained(self) -> Path:
        """The run that trains the next student."""
        return self.path / "train"


def student_of(rounds: Rounds, out: Path, number: int) -> str:
    """Return the student that answers in a round: trained in the round before."""
    if not number:
        return rounds.student
    return str(RoundFolder(out=out, number=number - 1).trained / FINAL)


def answer_steps(rounds: Rounds, here: RoundFolder, prompts: tuple[Path, ...]) -> Iterator[Step]:
    """Yield the steps up to the measurement of the student that answers.

    Args:
        rounds: what is asked for.
        here: the folder of the round.
        prompts: the files that the student answers; the last one has the held-out ones.
    """
    student = student_of(rounds, here.out, here.number)
    yield Step(
        name="generate",
        program="labeler",
        arguments=(
            *("label", *map(str, prompts), "--model", student, "--mode", "generate"),
            *("--out", str(here.answers), "--seed", str(rounds.seed + here.number)),
        ),
        flags={"k": rounds.ids} | rounds.flags("generate"),
        output=here.answers,
    )
    answers: tuple[Path, ...] = (here.held_out_answers,)
    if not here.last:
        kept = here.path / "kept.view.json"
        yield _view("hold-out", here.answers, IS_HELD_OUT, here.held_out_answers, {})
        flags = rounds.flags("filter")
        filtering = _view("filter", here.answers, f"not {IS_HELD_OUT}", kept, flags)
        yield replace(filtering, may_select_nothing=True)
        if kept.exists():
            answers = (kept, here.held_out_answers)
    yield Step(
        name="score",
        program="labeler",
        arguments=(
            *("label", *map(str, answers), "--model", rounds.teacher, "--mode", "score"),
            *("--ids-from", f"topk_ids:{rounds.ids}", "--out", str(here.labels)),
        ),
        flags=rounds.flags("score"),
        output=here.labels,
    )
    if not here.last:
        yield _view("held-out-labels", here.labels, IS_HELD_OUT, here.held_out_labels, {})
    yield Step(
        name="measure",
        program="trainer",
        arguments=(
            *("evaluate", "--labels", str(here.held_out_labels), "--model", student),
            *("--out", str(here.measured), "--worst", "0"),
        ),
        flags={},
        output=here.measured,
    )


def train_steps(rounds: Rounds, out: Path, number: int) -> Iterator[Step]:
    """Yield the steps that train the next student: on this round, older ones, and `mix`."""
    here = RoundFolder(out=out, number=number)
    yield _view("train-labels", here.labels, f"not {IS_HELD_OUT}", here.train_labels, {})
    mixed = dict(rounds.mix)
    for older in range(number):
        weight = rounds.replay ** (number - older)
        if weight >= SMALLEST_WEIGHT:
            mixed[str(RoundFolder(out=out, number=older).train_labels)] = weight
    yield Step(
        name="train",
        program="trainer",
        arguments=(
            *("train", "--labels", str(here.train_labels)),
            *("--student", student_of(rounds, out, number), "--out", str(here.trained)),
            *("--seed", str(rounds.seed + number)),
            *(text for path, weight in mixed.items() for text in ("--mix", f"{path}={weight:g}")),
        ),
        flags=rounds.flags("train"),
        output=here.trained / FINAL,
    )


def _view(name: str, labels: Path, where: str, view: Path, flags: Flags) -> Step:
    return Step(
        name=name,
        program="labeler",
        arguments=("curate", str(labels), "--out", str(view), "--where", where),
        flags=flags,
        output=view,
    )
