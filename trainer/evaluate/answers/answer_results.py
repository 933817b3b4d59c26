"""Comparisons of answers, as the results file of `trainer evaluate` holds them. No torch."""

from __future__ import annotations

from pydantic import Field

from trainer.record import Record


class AnswerFigure(Record):
    """A figure over the answers of a set: a mean over prompts, each of them counted once.

    Attributes:
        value: the mean.
        interval: its 95 % interval, over prompts; None for figures that are no mean.
        replicates: its value in each replicate of the bootstrap, as `trainer.evaluate.bootstrap`
            writes them; paired with those of other sets over the same prompts.
    """

    value: float
    interval: tuple[float, float] | None = None
    replicates: str | None = None


class MeasuredAnswers(Record):
    """A student's answers beside the teacher's, on the prompts that both have.

    Attributes:
        path: the label set.
        inputs: digest of the set, the reference, the verdicts and the settings.
        weights, weights_scope: the model, as the set's identity names it.
        reference: the label set of the teacher's answers.
        verdicts: files of verdicts on both.
        refusal_pattern: the user's, if any.
        prompts: prompts that both have.
        missing: prompts of the reference that have no answer here.
        surplus: prompts that only this set has.
        answers: the student's answers to the compared prompts.
        student: figures of the student's answers, by name; docs/tasks.md explains them.
        teacher: figures of the teacher's answers.
        differences: figures of the student minus those of the teacher.
    """

    path: str
    inputs: str
    weights: str
    weights_scope: str
    reference: str
    verdicts: list[str] = Field(default_factory=list)
    refusal_pattern: str | None = None
    prompts: int
    missing: int
    surplus: int
    answers: int
    student: dict[str, AnswerFigure]
    teacher: dict[str, AnswerFigure]
    differences: dict[str, AnswerFigure]
