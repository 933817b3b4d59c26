from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluate.bootstrap import document_counts, to_text
from trainer.evaluate.tasks.task_results import TaskMetric
from trainer.evaluate.tasks.task_retention import Retention, retention


def metric(value: float | None, **other: object) -> TaskMetric:
    fields = {
        "task": "t",
        "metric": "acc",
        "filter": "none",
        "value": value,
        "stderr": 0.01,
        "higher_is_better": True,
        "chance": 0.25,
        "items": 400,
    }
    return TaskMetric.model_validate(fields | other)


def right(answers: list[float], **other: object) -> TaskMetric:
    values = np.array(answers)
    counts = document_counts([f"t#{i}" for i in range(len(values))])
    replicates = to_text(counts.T @ values / counts.sum(0))
    return metric(float(values.mean()), replicates=replicates, items=len(values), **other)


def test_retention_is_a_ratio_and_what_is_above_chance() -> None:
    found = retention(metric(0.5), metric(0.75))
    assert found.ratio == pytest.approx(2 / 3)
    assert found.corrected == pytest.approx(0.5)
    assert found.note == ""
    worse = retention(metric(0.2), metric(0.75))
    assert worse.corrected == pytest.approx(-0.1)


def test_without_chance_there_is_a_ratio_alone() -> None:
    found = retention(metric(0.3, chance=None), metric(0.6, chance=None))
    assert found == Retention(ratio=pytest.approx(0.5))


def test_lower_is_better() -> None:
    lower = {"chance": None, "higher_is_better": False}
    assert retention(metric(20.0, **lower), metric(10.0, **lower)).ratio == pytest.approx(0.5)
    assert retention(metric(20.0, **lower), metric(0.0, **lower)).ratio is None


@pytest.mark.parametrize("value", [0.25, 0.1, 0.0])
def test_a_teacher_at_chance_has_no_retention(value: float) -> None:
    found = retention(metric(0.5), metric(value))
    assert (found.ratio, found.corrected, found.interval) == (None, None, None)
    assert "at or below chance" in found.note


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_no_number_no_retention(value: float | None) -> None:
    for pair in ((metric(value), metric(0.5)), (metric(0.5), metric(value))):
        found = retention(*pair)
        assert found.ratio is None
        assert found.note


def test_unknown_direction_is_no_retention() -> None:
    assert retention(metric(0.5, higher_is_better=None), metric(0.6)).ratio is None


def test_the_interval_is_paired_over_items() -> None:
    draw = np.random.default_rng(0)
    teacher = (draw.random(400) < 0.8).astype(float)
    student = teacher * (draw.random(400) < 0.9)
    found = retention(right(student.tolist()), right(teacher.tolist()))
    assert found.interval is not None
    assert found.corrected is not None
    assert found.interval.low < found.corrected < found.interval.high
    assert found.interval.high - found.interval.low < 0.15
    same = retention(right(teacher.tolist()), right(teacher.tolist()))
    assert same.interval == pytest.approx((1.0, 1.0))


def test_a_teacher_barely_above_chance_has_no_interval() -> None:
    teacher = [1.0] * 11 + [0.0] * 29  # 27.5 % of 40
    found = retention(right([1.0] * 12 + [0.0] * 28), right(teacher))
    assert found.interval is None
    assert "not clearly above chance" in found.note
