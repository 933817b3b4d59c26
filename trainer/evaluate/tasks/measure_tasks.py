"""`trainer evaluate --tasks`: run what the results lack, and print what the students keep."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table

from schemas.hub_model import locate_model
from trainer.console import message_console, number_table, percent
from trainer.evaluate.bootstrap import FEW_DOCUMENTS, LEVEL
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.results import TaskAndAnswerResults, model_digest
from trainer.evaluate.tasks.run_tasks import harness_version, run_tasks
from trainer.evaluate.tasks.task_files import TaskSpec, parse_tasks
from trainer.evaluate.tasks.task_flags import TaskFlags
from trainer.evaluate.tasks.task_results import TaskMetric, TaskSettings, lookup_task
from trainer.evaluate.tasks.task_retention import Retention, retention

TEACHER = "teacher"
Metrics = dict[tuple[str, str, str], TaskMetric]


class TaskPlan(NamedTuple):
    """What to run, and how."""

    specs: list[TaskSpec]
    settings: TaskSettings
    allow_code: bool


def plan_tasks(flags: TaskFlags, dtype: str) -> TaskPlan:
    """Read the tasks.

    Raises:
        SoftshardsError: a task cannot be read, or the harness is not installed.
    """
    settings = TaskSettings(
        lm_eval=harness_version(),
        shots=flags.task_shots,
        limit=flags.task_limit,
        chat_template=flags.task_chat,
        dtype=dtype,
    )
    specs = parse_tasks(flags.tasks, allow_code=flags.allow_task_code)
    return TaskPlan(specs, settings, flags.allow_task_code)


def measure_tasks(
    config: EvaluateConfig, plan: TaskPlan, results: TaskAndAnswerResults
) -> list[Table]:
    """Run tasks on the teacher and all models, and write them to the results.

    Returns:
        A table per metric.

    Raises:
        SoftshardsError: a task cannot be run.
    """
    specs, settings, allow_code = plan
    if config.teacher is None:
        message_console().print("warning: no retention without --teacher")
    places = [config.teacher] if config.teacher is not None else []
    measured: dict[str, Metrics] = {}
    for model in [*places, *config.model]:
        source = locate_model(model, say=message_console().print)
        digest = model_digest(source.folder)
        run_tasks(
            source.folder,
            digest,
            specs,
            settings,
            results.tasks,
            place=str(source),
            allow_code=allow_code,
            store=lambda: results.write(config.out),
        )
        found: Metrics = {}
        for spec in specs:
            entry = lookup_task(
                results.tasks, model=digest, name=spec.name, digest=spec.digest, settings=settings
            )
            assert entry is not None, "it was run"
            found |= {metric.key: metric for metric in entry.metrics}
        measured[TEACHER if model is config.teacher else str(model)] = found
    return _tables(measured)


def _tables(measured: dict[str, Metrics]) -> list[Table]:
    """Return a table for each metric of tasks that are no member of a group."""
    keys = {key: metric for found in measured.values() for key, metric in found.items()}
    return [_table(key, one, measured) for key, one in keys.items() if one.group is None]


def _table(key: tuple[str, str, str], one: TaskMetric, measured: dict[str, Metrics]) -> Table:
    """Return the values of all models, and what the students keep."""
    teacher = measured.get(TEACHER, {}).get(key)
    kept = {
        place: retention(found[key], teacher)
        for place, found in measured.items()
        if place != TEACHER and teacher is not None and key in found
    }
    title = f"{one.task}: {one.metric}"
    if one.filter != "none":
        title += f", {one.filter}"
    title += f" ({one.items} items"
    title += f", chance {one.chance:.1%})" if one.chance is not None else ")"
    columns = ["value", "± s.e.", "kept"]
    if one.chance is not None:
        columns.append("above chance")
    columns.append(f"{LEVEL:.0%} interval")
    table = number_table(title, "model", *columns, caption=_caption(kept, one))
    for place, found in measured.items():
        if key in found:
            figures = _figures(kept.get(place, Retention()), one)
            table.add_row(place, _number(found[key].value), _number(found[key].stderr), *figures)
    return table


def _figures(kept: Retention, one: TaskMetric) -> list[str]:
    figures = [percent(kept.ratio)]
    if one.chance is not None:
        figures.append(percent(kept.corrected))
    bounds = kept.interval
    return [*figures, "–" if bounds is None else f"{bounds.low:.1%} to {bounds.high:.1%}"]


def _caption(kept: dict[str, Retention], one: TaskMetric) -> str | None:
    lines = []
    if one.higher_is_better is False:
        lines.append("lower is better: kept is teacher / student")
    if any(each.interval is not None for each in kept.values()):
        lines.append("interval of what is kept above chance" if one.chance is not None else "")
        if one.items < FEW_DOCUMENTS:
            lines.append(f"with {one.items} items, the interval is too narrow")
    lines += sorted({f"kept: {each.note}" for each in kept.values() if each.note})
    return "\n".join(line for line in lines if line) or None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
