"""Results of tasks, as the results file of `trainer evaluate` holds them. No torch."""

from __future__ import annotations

from trainer.record import Record


class TaskSettings(Record):
    """What decides a task's results, beside the model and the task; equal for all models.

    Attributes:
        lm_eval: version of lm-evaluation-harness.
        shots: examples before each item; None leaves it to the task.
        limit: items per task; None runs all.
        chat_template: whether prompts are rendered by the model's chat template.
        dtype: dtype that the models run in.
    """

    lm_eval: str
    shots: int | None
    limit: int | None
    chat_template: bool
    dtype: str


class TaskMetric(Record):
    """A metric of one task or group.

    Attributes:
        task: the task's name; those of a group's members differ from the name that was asked for.
        group: the group that it is a member of.
        metric: the harness's name, such as `acc_norm`.
        filter: the harness's filter of answers; `none` for most tasks.
        value: None where the harness gives no number.
        stderr: standard error, as the harness computes it.
        higher_is_better: None where the harness does not say.
        chance: value of guessing uniformly; None for all but accuracies of multiple choice.
        items: documents of the task.
        replicates: the value in each replicate of a bootstrap over items, as
            `trainer.evaluate.bootstrap` writes them; only for means over items.
    """

    task: str
    group: str | None = None
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    chance: float | None
    items: int
    replicates: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What a metric of two models is paired by."""
        return self.task, self.metric, self.filter


class MeasuredTask(Record):
    """One entry of `--tasks`, run on one model.

    Attributes:
        model: digest of the model's weights.
        name: of the task, group or tag.
        digest: of its file and data; empty for one that comes with the harness.
        path: of its file, where it was when it ran.
    """

    model: str
    name: str
    digest: str
    path: str | None = None
    settings: TaskSettings
    metrics: list[TaskMetric]


def lookup_task(
    known: list[MeasuredTask], *, model: str, name: str, digest: str, settings: TaskSettings
) -> MeasuredTask | None:
    """Return the results of a task on a model with these settings."""
    wanted = (model, name, digest, settings)
    for entry in known:
        if (entry.model, entry.name, entry.digest, entry.settings) == wanted:
            return entry
    return None
