"""select.json: the result of a selection, and the plan that --dry-run prints. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from trainer.record import Record
from trainer.select.task_checks import SetFacts

RECORD = "select.json"
FLOPS = 6
"""Operations per parameter and token: 2 forward, 4 backward (Kaplan et al., arXiv 2001.08361)."""

Outcome = Literal["best", "finalist", "eliminated", "failed", "ruled out", "candidate"]
OUTCOMES: tuple[Outcome, ...] = (
    "best",
    "finalist",
    "candidate",
    "eliminated",
    "failed",
    "ruled out",
)


class ForecastAt(Record):
    """A forecast of the metric at the last step, made at the end of a rung; see `forecast`."""

    step: int
    value: float
    low: float
    high: float


class CandidateRecord(Record):
    """A candidate and what became of it.

    Attributes:
        teacher: name of the teacher, and of its labels if there are several.
        student: the checkpoint that it starts from.
        reason: why it was eliminated or ruled out, or failed.
        step: the last one that it was measured at.
        value: the metric there.
        curve: step and metric of all measurements.
        untrained_kl: KL to the teacher before training; None if it was not measured.
    """

    name: str
    teacher: str
    student: str
    settings: dict[str, JsonValue]
    parameters: int | None
    bytes: int | None
    outcome: Outcome
    reason: str | None = None
    step: int | None = None
    value: float | None = None
    tokens: int = 0
    untrained_kl: float | None = None
    curve: list[tuple[int, float]] = Field(default_factory=list)
    forecasts: list[ForecastAt] = Field(default_factory=list)


class RungRecord(Record):
    """A rung; before it is trained, its largest cost.

    Attributes:
        step: that its candidates are trained to.
        candidates: their number.
        tokens: trained on in this rung.
        pflop: operations of that, in 10^15.
        disk: bytes of checkpoints and trained models at its end, at most.
        hours: at --tflops.
    """

    step: int
    candidates: int
    tokens: int
    pflop: float
    disk: int
    hours: float | None = None


class SelectRecord(Record):
    """A selection.

    Attributes:
        metric: of the ranking: `kl`, to the teacher, or `ce`, on the text of the probe.
        warnings: why the task may be a poor candidate.
        teachers: facts of the label sets: first the probes, then the sets to train on.
        exhaustive_tokens: of training all candidates to the last step.
        best: name of the best candidate.
        config: a file for `trainer train --config` with its settings.
    """

    metric: Literal["kl", "ce"]
    warnings: list[str]
    teachers: list[SetFacts]
    rungs: list[RungRecord]
    candidates: list[CandidateRecord]
    tokens: int
    exhaustive_tokens: int
    best: str | None = None
    config: str | None = None

    @property
    def share(self) -> float:
        """Trained tokens as a share of those of training all candidates to the last step."""
        return self.tokens / max(1, self.exhaustive_tokens)

    def ranked(self) -> list[CandidateRecord]:
        """Return the best first; those that were trained further before the others."""
        return sorted(
            self.candidates,
            key=lambda c: (
                OUTCOMES.index(c.outcome),
                -(c.step or 0),
                c.value if c.value is not None else float("inf"),
                c.name,
            ),
        )


class Decisive(Record):
    """rungs.json: what decides, beside the logs of the runs, who is trained further.

    Attributes:
        candidates: names of those that take part.
        rungs: step and candidates of each.
        probes: digest of the probe of each teacher.
    """

    candidates: list[str]
    rungs: list[tuple[int, int]]
    metric: str
    probes: dict[str, str]

    def lines(self) -> dict[str, object]:
        """Return the content under one key per candidate, to be compared."""
        names = {f"candidate {name}": "takes part" for name in self.candidates}
        probes = {f"probe of {name}": digest for name, digest in self.probes.items()}
        return {"metric": self.metric, "rungs (step, candidates)": self.rungs, **probes, **names}


class Failed(Record):
    """failed.json: a candidate that ended without a measurement, in a rung."""

    step: int
    reason: str
