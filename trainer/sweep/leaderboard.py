"""Quality against size against speed: one row per trial, and one group per set of seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from schemas.bench_results import BenchResults, speeds
from trainer.evaluate.results import QUALITY, EvaluationResults, HeldOutSet
from trainer.run_files import FINAL
from trainer.sweep.grid import Settings, Trial
from trainer.sweep.trial_folder import failure_reason, read_stopped
from trainer.train.run_record import RunResult


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial; None where something was not measured."""

    name: str
    label: str
    status: Literal["finished", "stopped", "failed"]
    settings: Settings
    note: str | None = None
    """Why it failed, or where it was stopped."""
    ppl: float | None = None
    kl: float | None = None
    agreement: float | None = None
    ece: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    reading: float | None = None  # tokens/s
    generating: float | None = None  # tokens/s
    steps: int | None = None
    tokens: int | None = None
    train_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over seeds, and the standard deviation (n - 1) if there are several."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Finished trials that differ only in the seed."""

    label: str
    names: list[str]
    ppl: Spread
    kl: Spread
    agreement: Spread
    ece: Spread
    parameters: int
    bytes: int
    generating: float | None
    front: bool = False
    """On the Pareto front: no other group is at least as good in KL, parameters and (if all have
    it) generation speed, and better in one of them."""


def make_row(
    trial: Trial,
    result: RunResult | None,
    results: EvaluationResults,
    bench: BenchResults | None,
) -> Row:
    """Return the row of a trial that ended.

    Args:
        trial: the trial.
        result: its result.json, None if it has none.
        results: measurements of `trainer evaluate`.
        bench: measurements of `labeler bench`.

    Raises:
        SoftshardsError: its model was not measured.
    """
    row = Row(name=trial.name, label=trial.label, settings=trial.settings, status="failed")
    if result is None and (stopped := read_stopped(trial.folder)):
        last = stopped.last
        return replace(
            row,
            **{quality.name: getattr(last, quality.name) for quality in QUALITY},
            status="stopped",
            note=f"{stopped.by} stopped it after step {last.step}",
            steps=last.step,
        )
    if result is None:
        return replace(row, note=failure_reason(trial.folder))
    model = trial.folder / FINAL
    found = results.find(model)
    reading, generating = speeds(bench, trial.name, [model, trial.folder])
    return replace(
        row,
        **{quality.name: getattr(found.all, quality.name) for quality in QUALITY},
        status="finished",
        parameters=found.parameters,
        bytes=found.bytes,
        reading=reading,
        generating=generating,
        steps=result.steps,
        tokens=result.tokens,
        train_seconds=result.seconds,
    )


def rank_rows(rows: list[Row]) -> list[Row]:
    """Sort finished trials by held-out KL, then stopped (their KL is from midway), then failed."""
    order = ("finished", "stopped", "failed")
    return sorted(rows, key=lambda r: (order.index(r.status), r.kl or 0.0, r.name))


def group_by_seed(rows: list[Row]) -> list[Group]:
    """Group finished trials over their seeds, sort by mean KL, and mark the Pareto front."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        if row.status == "finished":
            rest = {name: value for name, value in row.settings.items() if name != "seed"}
            alike.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    groups = sorted((_group(members) for members in alike.values()), key=lambda g: g.kl.mean)
    timed = all(group.generating for group in groups)
    costs = [_costs(group, timed) for group in groups]
    return [
        replace(group, front=not any(_dominates(other, own) for other in costs))
        for group, own in zip(groups, costs)
    ]


def to_json(rows: list[Row], groups: list[Group], held_out: HeldOutSet) -> dict[str, object]:
    """Return the content of leaderboard.json."""
    return {
        "held_out": held_out.model_dump(include={"path", "digests", "rows", "labels"}),
        "rows": [asdict(row) for row in rows],
        "groups": [asdict(group) for group in groups],
    }


def _group(members: list[Row]) -> Group:
    first = members[0]
    assert first.parameters is not None
    assert first.bytes is not None
    known = [row.generating for row in members if row.generating is not None]
    return Group(
        label=" / ".join(dict.fromkeys(row.label for row in members)),
        names=[row.name for row in members],
        ppl=_spread(row.ppl for row in members),
        kl=_spread(row.kl for row in members),
        agreement=_spread(row.agreement for row in members),
        ece=_spread(row.ece for row in members),
        parameters=first.parameters,
        bytes=first.bytes,
        generating=statistics.mean(known) if known else None,
    )


def _spread(measured: Iterable[float | None]) -> Spread:
    values = [value for value in measured if value is not None]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.mean(values), deviation=deviation)


def _costs(group: Group, timed: bool) -> tuple[float, ...]:
    """Return the measures in which less is better."""
    speed = (-group.generating,) if timed and group.generating else ()
    return group.kl.mean, float(group.parameters), *speed


def _dominates(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own))
