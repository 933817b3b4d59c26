"""What students keep of the teacher's results on tasks."""

from __future__ import annotations

import math

from trainer.evaluate.results import EvaluationResults
from trainer.evaluate.tasks.task_results import MeasuredTask, TaskMetric
from trainer.evaluate.tasks.task_retention import retention
from trainer.report.report_data import Estimate, ReportedModel, TaskCell, TaskRow

PREFERRED = ("acc_norm", "exact_match", "acc")
"""Metrics that stand for their task, the best first; otherwise its first one."""


def task_rows(results: EvaluationResults, models: list[ReportedModel]) -> list[TaskRow]:
    """Return a row for each metric of each task that the teacher was measured on.

    Args:
        results: the measurements.
        models: all models, the teacher first.
    """
    teacher = _teacher_digest(results)
    rows = []
    for measured in results.tasks:
        if measured.model != teacher:
            continue
        others = {
            m.name: _same_task(results.tasks, m.measured.weights, measured)
            for m in models
            if m.measured is not None
        }
        for metric in measured.metrics:
            if metric.group is not None:
                continue
            cells = {}
            for name, other in others.items():
                found = (
                    next((o for o in other.metrics if o.key == metric.key), None) if other else None
                )
                if found is not None:
                    cells[name] = _cell(found, metric)
            rows.append(
                TaskRow(
                    name=measured.name,
                    task=metric.task,
                    metric=metric.metric,
                    items=metric.items,
                    chance=metric.chance,
                    teacher=metric.value,
                    models=cells,
                )
            )
    return rows


def _teacher_digest(results: EvaluationResults) -> str:
    """Return the digest under which the teacher's tasks stand: labels may have another of it."""
    ran = {task.model for task in results.tasks}
    others = ran - {model.weights for model in results.models}
    if results.teacher.weights in ran or len(others) != 1:
        return results.teacher.weights
    return others.pop()


def _same_task(known: list[MeasuredTask], weights: str, like: MeasuredTask) -> MeasuredTask | None:
    wanted = (weights, like.name, like.digest, like.settings)
    return next((t for t in known if (t.model, t.name, t.digest, t.settings) == wanted), None)


def _cell(student: TaskMetric, teacher: TaskMetric) -> TaskCell:
    found = retention(student, teacher)
    kept = found.ratio if found.corrected is None else found.corrected
    low, high = found.interval or (None, None)
    estimate = None if kept is None else Estimate(value=kept, low=low, high=high)
    return TaskCell(value=student.value, kept=estimate, note=found.note)


def kept_on_tasks(
    rows: list[TaskRow], name: str
) -> tuple[Estimate, list[tuple[str, float]]] | None:
    """Return the mean of what a student keeps, and what it keeps of each task, the least first.

    One metric stands for each task. Tasks are independent: the half width of the mean's interval is
    the root of the sum of squares of theirs, over their number.
    """
    by_task: dict[str, list[TaskRow]] = {}
    for row in rows:
        if (cell := row.models.get(name)) is not None and cell.kept is not None:
            by_task.setdefault(row.task, []).append(row)
    chosen: list[tuple[str, Estimate]] = []
    for task, candidates in by_task.items():
        order = {metric: at for at, metric in enumerate(PREFERRED)}
        best = min(candidates, key=lambda row: order.get(row.metric, len(order)))
        kept = best.models[name].kept
        if kept is not None and math.isfinite(kept.value):
            chosen.append((task, kept))
    if not chosen:
        return None
    each = sorted(((task, kept.value) for task, kept in chosen), key=lambda pair: pair[1])
    mean, low, high = sum(value for _, value in each) / len(each), None, None
    halves = [
        (kept.value - kept.low, kept.high - kept.value)
        for _, kept in chosen
        if kept.low is not None and kept.high is not None
    ]
    if len(halves) == len(chosen):
        low = mean - math.hypot(*(below for below, _ in halves)) / len(halves)
        high = mean + math.hypot(*(above for _, above in halves)) / len(halves)
    return Estimate(value=mean, low=low, high=high), each
