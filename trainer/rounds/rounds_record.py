"""OUT/rounds.json: what each round came to. No torch."""

from __future__ import annotations

from pydantic import Field, JsonValue

from schemas import open_label_set
from trainer.evaluate.results import EvaluationResults
from trainer.record import Record
from trainer.rounds.command_steps import RoundFolder, student_of
from trainer.rounds.rounds_file import Rounds

RECORD = "rounds.json"
WHAT = "rounds of `trainer rounds`"
VERSION = 1


class RoundRecord(Record):
    """One round.

    Attributes:
        number: of the round.
        student: the checkpoint that answered.
        teacher_weights, student_weights: digests, as the label sets of the round have them.
        answers: answers of the student, without the ones that are kept apart.
        kept: of these, the ones that the filter left.
        labels: labels of the teacher, on answers to learn from.
        bytes: of the teacher's label set.
        kl, reverse_kl: of the student that answered, on its own answers that are kept apart.
        kl_interval: 95 % interval of `kl`.
        trained: the next student was trained on its labels.
        seconds: of each step, by name.
    """

    number: int
    student: str
    teacher_weights: str
    student_weights: str
    answers: int
    kept: int
    labels: int
    bytes: int
    kl: float
    kl_interval: tuple[float, float] | None = None
    reverse_kl: float | None = None
    trained: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)


class RoundsRecord(Record):
    """All rounds.

    Attributes:
        version: of this file.
        settings: what was asked for (`Rounds.decisive`).
        rounds: the ones whose student was measured; the last one is perhaps not trained on.
        seconds: of the steps before the next measurement that are done, by name.
        best: the student with the lowest held-out KL.
        stopped: why no further round follows; None if rounds are left.
    """

    version: int = VERSION
    settings: dict[str, JsonValue]
    rounds: list[RoundRecord] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    best: str | None = None
    stopped: str | None = None

    def rounds_without_gain(self) -> int:
        """Return how many rounds, at the end, had no lower KL than the best before them."""
        kls = [each.kl for each in self.rounds]
        return len(kls) - 1 - kls.index(min(kls))


def gather_round(rounds: Rounds, here: RoundFolder, seconds: dict[str, float]) -> RoundRecord:
    """Read what a round came to from its label sets and its measurement."""
    answers, labels = open_label_set(here.answers), open_label_set(here.labels)
    student = student_of(rounds, here.out, here.number)
    measured = EvaluationResults.open(here.measured).models[0]
    apart = open_label_set(here.held_out_labels)
    return RoundRecord(
        number=here.number,
        student=student,
        teacher_weights=labels.manifest.identity.weights,
        student_weights=answers.manifest.identity.weights,
        answers=answers.rows - open_label_set(here.held_out_answers).rows,
        kept=labels.rows - apart.rows,
        labels=labels.labels - apart.labels,
        bytes=labels.stored_bytes,
        kl=measured.all.kl,
        kl_interval=measured.intervals.get("kl"),
        reverse_kl=measured.figure("reverse_kl"),
        seconds={name: round(value, 1) for name, value in seconds.items()},
    )
