"""Quality against size against speed: one row a trial, and one group for each set of seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.evaluate.results import measured, speeds
from trainer.sweep.grid import Trial
from trainer.sweep.trial_folder import read_stopped, reason
from trainer.train.run_record import FINAL

QUALITY = ("ppl", "kl", "agreement", "ece")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial; None where something was not measured."""

    name: str
    label: str
    status: Literal["finished", "stopped", "failed"]
    settings: dict[str, Any]
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
    """Mean over seeds, and the standard deviation (n - 1) where there are several."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Finished trials that differ in nothing but the seed."""

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
    """No other group is at least as good in KL, parameters and (where all have it) speed of
    generating, and better in one of them: it is on the Pareto front."""


def row(
    trial: Trial,
    result: dict[str, Any] | None,
    results: dict[str, Any],
    bench: dict[str, Any] | None,
) -> Row:
    """What is known of a trial that ended.

    Args:
        result: its result.json, None where it has none.
        results: what `trainer evaluate` measured.
        bench: what `labeler bench` measured.

    Raises:
        SoftshardsError: its model was not measured.
    """
    about: dict[str, Any] = {"name": trial.name, "label": trial.label, "settings": trial.settings}
    if result is None and (stopped := read_stopped(trial.folder)):
        last = stopped["last"]
        note = f"{stopped['by']} stopped it after step {last['step']}"
        quality = {name: last.get(name) for name in QUALITY}
        return Row(**about, **quality, status="stopped", note=note, steps=last["step"])
    if result is None:
        return Row(**about, status="failed", note=reason(trial.folder))
    model = trial.folder / FINAL
    found = measured(model, results)
    reading, generating = speeds(bench, trial.name, [model, trial.folder])
    return Row(
        **about,
        **{name: found["all"][name] for name in QUALITY},
        **{name: found[name] for name in ("parameters", "bytes")},
        status="finished",
        reading=reading,
        generating=generating,
        steps=result["steps"],
        tokens=result["tokens"],
        train_seconds=result["seconds"],
    )


def ranked(rows: list[Row]) -> list[Row]:
    """Finished trials by held-out KL, then stopped ones (their KL is from midway), then failed."""
    order = ("finished", "stopped", "failed")
    return sorted(rows, key=lambda r: (order.index(r.status), r.kl or 0.0, r.name))


def groups(rows: list[Row]) -> list[Group]:
    """Finished trials over their seeds, by mean KL, with the Pareto front marked."""
    alike: dict[str, list[Row]] = {}
    for each in rows:
        if each.status == "finished":
            rest = {name: value for name, value in each.settings.items() if name != "seed"}
            alike.setdefault(json.dumps(rest, sort_keys=True), []).append(each)
    found = sorted((_group(own) for own in alike.values()), key=lambda group: group.kl.mean)
    timed = all(group.generating for group in found)
    costs = [_costs(group, timed) for group in found]
    return [
        Group(**{**vars(group), "front": not any(_beats(other, own) for other in costs)})
        for group, own in zip(found, costs)
    ]


def to_json(rows: list[Row], found: list[Group], results: dict[str, Any]) -> dict[str, Any]:
    """The content of leaderboard.json."""
    return {
        "held_out": {k: results["label_set"][k] for k in ("path", "digests", "rows", "labels")},
        "rows": [asdict(each) for each in rows],
        "groups": [asdict(group) for group in found],
    }


def _group(own: list[Row]) -> Group:
    first = own[0]
    assert first.parameters is not None
    assert first.bytes is not None
    known = [each.generating for each in own if each.generating is not None]
    return Group(
        label=" / ".join(dict.fromkeys(each.label for each in own)),
        names=[each.name for each in own],
        ppl=_spread(each.ppl for each in own),
        kl=_spread(each.kl for each in own),
        agreement=_spread(each.agreement for each in own),
        ece=_spread(each.ece for each in own),
        parameters=first.parameters,
        bytes=first.bytes,
        generating=statistics.mean(known) if known else None,
    )


def _spread(measured: Iterable[float | None]) -> Spread:
    values = [value for value in measured if value is not None]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.mean(values), deviation=deviation)


def _costs(group: Group, timed: bool) -> tuple[float, ...]:
    """What is better when it is less."""
    speed = (-group.generating,) if timed and group.generating else ()
    return group.kl.mean, float(group.parameters), *speed


def _beats(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own))
