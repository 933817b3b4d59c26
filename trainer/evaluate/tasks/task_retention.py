"""Retention on tasks: the share of the teacher's result that a student keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.bootstrap import Interval, from_text, interval
from trainer.evaluate.tasks.task_results import TaskMetric

Ratio = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


class Retention(NamedTuple):
    """Retention of one metric.

    Attributes:
        ratio: student / teacher; teacher / student where lower is better.
        corrected: (student - chance) / (teacher - chance), for multiple choice.
        interval: of `corrected`, or of `ratio` where chance is unknown; paired over items.
        note: why a figure is missing, or what to think of it.
    """

    ratio: float | None = None
    corrected: float | None = None
    interval: Interval | None = None
    note: str = ""


def retention(student: TaskMetric, teacher: TaskMetric) -> Retention:
    """Return a student's retention, without the figures that are undefined."""
    if student.value is None or teacher.value is None or student.higher_is_better is None:
        return Retention(note="no number, or the harness does not say whether higher is better")
    if not (math.isfinite(student.value) and math.isfinite(teacher.value)):
        return Retention(note="not finite")
    if student.higher_is_better is False:
        if student.value <= 0 or teacher.value <= 0:
            return Retention(note="undefined: not positive")
        return _with_interval(
            student, teacher, lambda s, t: t / s, Retention(teacher.value / student.value)
        )
    floor = teacher.chance or 0.0
    if teacher.value <= floor:
        what = "0" if teacher.chance is None else "chance"
        return Retention(note=f"undefined: the teacher is at or below {what}")
    found = Retention(student.value / teacher.value)
    if teacher.chance is not None:
        corrected = (student.value - floor) / (teacher.value - floor)
        found = found._replace(corrected=corrected)
    return _with_interval(student, teacher, lambda s, t: (s - floor) / (t - floor), found, floor)


def _with_interval(
    student: TaskMetric,
    teacher: TaskMetric,
    ratio: Ratio,
    found: Retention,
    floor: float = 0.0,
) -> Retention:
    """Add the interval, or say that the teacher is not clearly above the floor."""
    if student.replicates is None or teacher.replicates is None:
        return found
    first, second = from_text(student.replicates), from_text(teacher.replicates)
    if not interval(second, teacher.items).low > floor:
        what = "chance" if teacher.chance is not None else "0"
        return found._replace(note=f"unstable: the teacher is not clearly above {what}")
    with np.errstate(all="ignore"):
        values = ratio(first, second)
    values[~np.isfinite(values)] = np.nan
    return found._replace(interval=interval(values, teacher.items))
