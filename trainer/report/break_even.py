"""What a student saves per token, and after how many tokens it has paid for itself. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

from schemas.ledger import Ledger
from schemas.prices import MILLION, Prices
from trainer.record import Record


class Savings(Record):
    """The cost of a student beside its teacher's; None where something was not measured.

    Attributes:
        currency: of all amounts.
        teacher, student: price of a million generated tokens.
        share: part of the teacher's price that the student saves; negative if it costs more.
        labeling: price of labeling.
        training: price of training.
        pays: the student is cheaper than its teacher.
        break_even: generated tokens after which labeling and training are paid for, if it pays.
    """

    currency: str
    teacher: float | None
    student: float | None
    share: float | None
    labeling: float | None
    training: float | None
    pays: bool | None
    break_even: float | None


def break_even(spent: float, teacher: float, student: float) -> float:
    """Return the number of tokens after which a student has paid for itself.

    That is the smallest n with `spent + n * student <= n * teacher`. The three may be seconds or
    money, as long as they are in one unit.

    Args:
        spent: on labeling and training.
        teacher: cost of a token from the teacher.
        student: cost of a token from the student.

    Returns:
        0 if nothing was spent and the student is cheaper; infinity if it is not cheaper.
    """
    saved = teacher - student
    return spent / saved if saved > 0 else math.inf


def savings(
    prices: Prices,
    *,
    teacher_speed: float | None,
    student_speed: float | None,
    ledgers: Iterable[Ledger | None],
    training_seconds: float | None,
    training_tokens: int | None,
) -> Savings:
    """Price a student, its labels and its training.

    Args:
        prices: the user's table.
        teacher_speed, student_speed: tokens generated per second.
        ledgers: of the label sets it was made from; None for a set without one, such as a view.
        training_seconds: seconds of training.
        training_tokens: tokens trained on.

    Raises:
        SoftshardsError: the table has several devices and does not say which one did the work.
    """
    teacher = prices.device("teacher").million_tokens(teacher_speed)
    student = prices.device("students").million_tokens(student_speed)
    sets = [None if ledger is None else prices.labeling_cost(ledger) for ledger in ledgers]
    costs = [cost for cost in sets if cost is not None]
    labeling = sum(costs) if sets and len(costs) == len(sets) else None
    training = None
    if training_seconds is not None and training_tokens is not None:
        training = prices.device("training").work(seconds=training_seconds, tokens=training_tokens)
    share = tokens = None
    if teacher is not None and student is not None:
        share = 1 - student / teacher
        if labeling is not None and training is not None:
            tokens = break_even(labeling + training, teacher / MILLION, student / MILLION)
    return Savings(
        currency=prices.currency,
        teacher=teacher,
        student=student,
        share=share,
        labeling=labeling,
        training=training,
        pays=None if share is None else share > 0,
        break_even=tokens if tokens is not None and math.isfinite(tokens) else None,
    )
