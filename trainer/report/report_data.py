"""The content of a report as typed records: the page, its Markdown and its JSON show the same."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, JsonValue

from schemas import __version__
from schemas.manifest import Identity
from trainer.console import number
from trainer.evaluate.results import HeldOutSet, MeasuredModel, Metrics
from trainer.evaluate.worst_sequences import WorstSequence
from trainer.record import Record
from trainer.train.run_record import RunResult

MADE_BY = "softshards report"
"""Marks files that a later report may overwrite."""

Status = Literal["good", "bad", "unknown", "plain"]
Role = Literal["teacher", "baseline", "trained"]


class Estimate(Record):
    """A figure and the bounds of its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """True if there is an interval, and it excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Rate(Record):
    """A figure of `labeler bench`: the median of its rounds, the lowest and the highest of them.

    Attributes:
        is_stable: the rounds agree.
    """

    value: float
    low: float | None = None
    high: float | None = None
    is_stable: bool


class Wait(Record):
    """Seconds that requests wait when `concurrency` of them arrive at once."""

    concurrency: int
    first_token: Rate
    last_token: Rate


class Speed(Record):
    """How fast a model runs, as `labeler bench` measured it.

    Attributes:
        reading, generating: tokens per second.
        speedup: generating, relative to the teacher round by round; None for the teacher.
        waits: by concurrency.
        peak_memory: bytes.
        joules: per token; None where nothing counts or estimates it.
        joules_estimated_by: what computed the joules from constants; None where they are counted.
    """

    reading: Rate
    generating: Rate
    speedup: Rate | None = None
    waits: list[Wait] = Field(default_factory=list)
    peak_memory: int | None = None
    joules: Rate | None = None
    joules_estimated_by: str | None = None


class ReportedModel(Record):
    """One model; None where something was not measured.

    Attributes:
        name: as the command line names it.
        path: its folder, or the teacher's name.
        at_least: the perplexity is a lower bound.
        metrics: means over the held-out labels; the teacher has only `ppl` and `ece`.
        intervals: their 95 % intervals.
        accuracy: share of positions where the most likely token is the actual one.
        accuracy_kept: that, relative to the teacher's.
        speed: measured in the same engine for all.
        cost: price of a million generated tokens, by the user's table.
        losses: of its training, as typed.
        tokens_only: it was trained without the teacher's labels.
        seconds: of its training.
        differences: metrics minus those of the run on tokens alone.
        measured, training: the records that the figures are from.
    """

    name: str
    role: Role
    path: str
    ppl: float | None = None
    at_least: bool = False
    metrics: Metrics | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    ece: float | None = None
    accuracy: float | None = None
    accuracy_kept: Estimate | None = None
    parameters: int | None = None
    non_embedding: int | None = None
    bytes: int | None = None
    speed: Speed | None = None
    cost: float | None = None
    losses: list[str] = Field(default_factory=list)
    tokens_only: bool = False
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    differences: dict[str, Estimate] = Field(default_factory=dict)
    measured: MeasuredModel | None = Field(default=None, exclude=True, repr=False)
    training: RunResult | None = Field(default=None, exclude=True, repr=False)

    def estimate(self, name: str) -> Estimate | None:
        """Return a metric with its interval."""
        value = getattr(self.metrics, name, None)
        if value is None:
            return None
        low, high = self.intervals.get(name, (None, None))
        return Estimate(value=value, low=low, high=high)

    @property
    def reading(self) -> float | None:
        """Tokens read per second, as a median."""
        return self.speed.reading.value if self.speed else None

    @property
    def speedup(self) -> float | None:
        """Speed of generation relative to the teacher."""
        return self.speed.speedup.value if self.speed and self.speed.speedup else None

    @property
    def generating(self) -> float | None:
        """Tokens generated per second, as a median."""
        return self.speed.generating.value if self.speed else None

    @property
    def worst(self) -> list[WorstSequence]:
        """The sequences on which it is farthest from the teacher."""
        return self.measured.worst if self.measured else []


class Answer(Record):
    """One of the four questions that the report opens with.

    Attributes:
        question: "Kept", "Saved", "Paid back", "Teacher's labels".
        headline: a figure, or "not measured".
        meaning: what the figure is.
        interval: its 95 % interval as text; empty where there is none.
        details: further sentences.
        status: "bad" is shown in red: the interval includes no gain.
    """

    question: str
    headline: str
    meaning: str
    interval: str = ""
    details: list[str] = Field(default_factory=list)
    status: Status = "plain"


class Check(Record):
    """A condition of shipping, and how the student meets it."""

    condition: str
    status: Status
    finding: str


class Verdict(Record):
    """The answer to "would I ship it?".

    Attributes:
        student: name of the run that it is about.
        control: name of the run on tokens alone that it is compared with.
        ship: all conditions are met, one is not, or one was not measured.
        summary: what was kept and saved and when it is paid back, in one sentence.
        reason: why.
    """

    student: str
    control: str | None = None
    ship: Literal["yes", "no", "undecided"]
    summary: str
    reason: str
    answers: list[Answer]
    checks: list[Check]


class TaskCell(Record):
    """A student on a task.

    Attributes:
        value: its result.
        kept: the share of the teacher's that it keeps, above chance where that is known.
        note: why a figure is missing, or what to think of it.
    """

    value: float | None
    kept: Estimate | None
    note: str = ""


class TaskRow(Record):
    """A metric of a task; `models` by name."""

    name: str
    task: str
    metric: str
    items: int
    chance: float | None
    teacher: float | None
    models: dict[str, TaskCell]


class AnswerRow(Record):
    """A figure of answers; None where it is of one side, or has no difference."""

    figure: str
    student: Estimate | None
    teacher: Estimate | None
    difference: Estimate | None


class AnswerTable(Record):
    """A student's answers beside the teacher's; docs/tasks.md explains the figures.

    Attributes:
        name: of the model, or the label set where no reported model has its weights.
        path: the label set of the student's answers.
        prompts: prompts that both answered; `missing` ones have no answer of the student.
    """

    name: str
    path: str
    prompts: int
    missing: int
    rows: list[AnswerRow]


class ExportLine(Record):
    """An exported student; figures are None until it was run on labels.

    Attributes:
        format: as --to named it.
        model: the student's folder.
        size_ratio: bytes over the student's.
        ppl_ratio: perplexity over the student's.
        agreement, student_agreement: share of positions with the teacher's top token, of the
            exported student and of the student on the same labels.
        generating: tokens per second in its runtime.
        is_stable: its repeats agree.
    """

    path: str
    format: str
    model: str
    bytes: int
    size_ratio: float
    runtime: str | None = None
    ppl: float | None = None
    ppl_ratio: float | None = None
    agreement: float | None = None
    student_agreement: float | None = None
    generating: float | None = None
    is_stable: bool = True


class AuditLine(Record):
    """What a model repeats of the training set; counts as text, such as "2 of 50".

    Attributes:
        extracted: prefixes whose continuation it generates exactly.
        near_verbatim: generations that mostly consist of training text.
        longest: tokens of the longest overlap.
        values: personal data and secrets that it completes; None if they were not searched.
        canaries: canaries that it memorized; None without canaries.
    """

    role: str
    path: str
    extracted: str
    near_verbatim: str
    longest: int
    values: str | None = None
    canaries: str | None = None


class LabelSetCard(Record):
    """A label set and where it comes from.

    Attributes:
        digests: by what: "identity", "plan", "content".
        facts: teacher, input files, engine and cost.
    """

    path: str
    identity: Identity
    status: str
    digests: dict[str, str]
    facts: dict[str, str]
    rows: int
    labels: int
    bytes_per_label: float | None
    engine_seconds: float | None


class Step(Record):
    """A command that made a part of what is reported, and what is known of it."""

    makes: str
    command: str
    note: str = ""


class Reproduction(Record):
    """How the report came about: commands, and versions of this machine."""

    steps: list[Step]
    versions: dict[str, str]


class ReportContent(Record):
    """report.json."""

    made_by: str = MADE_BY
    softshards: str = __version__
    title: str
    verdict: Verdict | None
    held_out: HeldOutSet
    documents: int
    models: list[ReportedModel]
    tasks: list[TaskRow] = Field(default_factory=list)
    answers: list[AnswerTable] = Field(default_factory=list)
    exports: list[ExportLine] = Field(default_factory=list)
    audit: list[AuditLine] = Field(default_factory=list)
    label_sets: list[LabelSetCard]
    label_seconds: float | None
    bench: dict[str, str | int | float] = Field(default_factory=dict)
    currency: str | None = None
    reproduction: Reproduction

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the content as JSON-able values; figures that are not finite are null."""
        return {name: _with_nulls(value) for name, value in super().to_dict().items()}

    @property
    def teacher(self) -> ReportedModel:
        """The teacher, which is always there."""
        return self.models[0]

    @property
    def judged(self) -> ReportedModel | None:
        """The student that the verdict is about."""
        name = self.verdict.student if self.verdict else None
        return next((m for m in self.models if m.role == "trained" and m.name == name), None)


def _with_nulls(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {name: _with_nulls(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_nulls(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown_number(value: float | None, decimals: int, *, at_least: bool = False) -> str:
    """Return a figure as the report shows it: short, however large, and never "nan"."""
    if value is not None and not math.isfinite(value):
        return "not finite"
    if value is not None and abs(value) >= 1e7:
        return f"{'≥' if at_least else ''}{value:.1e}"
    return number(value, decimals, at_least=at_least).replace("-", "−")


def known_sum(values: list[float | None]) -> float | None:
    """Return the sum, or None if a value is not known, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
