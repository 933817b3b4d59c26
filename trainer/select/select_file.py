"""From select.yaml to candidates. No torch, no Ray."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas import SoftshardsError
from trainer.slice.slice_config import SliceConfig
from trainer.sweep.flags import parse_settings, slug
from trainer.sweep.grid import (
    LONGEST_NAME,
    TRIALS,
    Settings,
    Trial,
    check_settings,
    combine,
    load_sections,
)
from trainer.train.train_config import TrainConfig

OWN_SECTIONS = ("teachers", "budget", "constraints", "checks", "rank_by")
SECTIONS = ("base", "slices", "grid", "runs", *OWN_SECTIONS)
SET_BY_SELECT = {
    **dict.fromkeys(("labels", "eval_labels"), "`teachers` has the label sets"),
    **dict.fromkeys(("epochs", "max_steps"), "`budget` decides how long candidates train"),
    **dict.fromkeys(("patience", "shard"), "candidates train to the end of their rung"),
    "vocab_map": "all students read the same rows of the probe",
}
"""Flags that a candidate cannot have, and why."""
SCHEDULES = ("warmup_stable_decay", "constant", "inverse_sqrt")
"""Schedules whose learning rate does not fall towards the end of the run until late: a candidate
that stops at a rung is at the learning rate of a longer run."""
DEFAULTS: Settings = {"schedule": SCHEDULES[0], "keep_checkpoints": 1}
DECAY = 0.2
"""Share of the steps in which the learning rate falls, at the end of the last rung: 10 % in MiniCPM
(arXiv 2404.06395), 20 % in Hägele et al. (arXiv 2405.18392)."""

Metric = Literal["kl", "ce"]
Place = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Teacher(_Section):
    """A teacher's label sets.

    Attributes:
        labels: set to train on; several ones under names, such as kinds of labels.
        probe: its labels of the text that all students are measured on.
    """

    labels: Place | Annotated[dict[str, Place], Field(min_length=1)]
    probe: Place


class Budget(_Section):
    """How long candidates train.

    Attributes:
        steps: of a candidate that reaches the last rung.
        tokens: instead of steps, training tokens of all candidates together.
        factor: of the candidates of a rung, 1 in this many is trained further.
        rungs: their number; by default as many as the factor allows.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    tokens: Positive | None = None
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0
    rungs: Annotated[int, Field(ge=1, le=20)] | None = None


class Constraints(_Section):
    """Limits of a student, as it is used.

    Attributes:
        parameters, bytes: at most, of its checkpoint.
        memory: at most, in bytes; `peak_memory_bytes` of `labeler bench`.
        reading, generating: tokens per second at least, by `labeler bench`.
    """

    parameters: Positive | None = None
    bytes: Positive | None = None
    memory: Positive | None = None
    reading: Positive | None = None
    generating: Positive | None = None


class Checks(_Section):
    """Limits beyond which a task is called a poor candidate; nothing is ruled out by them.

    Attributes:
        entropy: nats per label that the teacher is unsure by, on the probe, at most.
        confidence: mean probability of its top token, at least.
        covered: mean probability of the stored top-k, at least.
        rejects: share of records that were not labeled, at most.
        student_kl: KL of an untrained student to the teacher on the probe, at least.
    """

    entropy: Positive = 4.0
    confidence: Share = 0.25
    covered: Share = 0.8
    rejects: Share = 0.05
    student_kl: Annotated[float, Field(ge=0)] = 0.05


class _File(_Section):
    teachers: Annotated[dict[str, Teacher], Field(min_length=1)]
    budget: Budget
    constraints: Constraints = Constraints()
    checks: Checks = Checks()
    rank_by: Metric | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A student to train on a teacher's labels.

    Attributes:
        trial: its settings and folder.
        teacher: name of the teacher, and of its labels if there are several.
        slice: makes its student, if the selection does.
    """

    trial: Trial
    teacher: str
    slice: SliceConfig | None

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.trial.name

    @property
    def is_there(self) -> bool:
        """Return True unless its student is still to be sliced."""
        return self.slice is None or (self.slice.out / "config.json").is_file()

    def with_settings(self, settings: Settings) -> Candidate:
        """Return the candidate with all these settings."""
        given = settings | {"out": str(self.trial.folder)}
        config = parse_settings(TrainConfig, given, self.name, self.trial.folder)
        trial = replace(self.trial, settings=settings, config=config)
        return replace(self, trial=trial)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The content of a select.yaml.

    Attributes:
        teachers: by name.
        metric: of the ranking.
    """

    candidates: list[Candidate]
    slices: list[SliceConfig]
    teachers: dict[str, Teacher]
    budget: Budget
    constraints: Constraints
    checks: Checks
    metric: Metric

    @property
    def step_tokens(self) -> int:
        """Tokens of a full step, which are the same for all candidates."""
        config = self.candidates[0].trial.config
        return config.packs_per_step * config.pack_tokens


def read_select(path: Path, out: Path) -> Selection:
    """Read select.yaml.

    Args:
        path: YAML with `base`, `slices`, `grid` and `runs` as in students.yaml of `trainer sweep`,
            and `teachers`, `budget`, `constraints`, `checks` and `rank_by`.
        out: folder of the selection.

    Raises:
        SoftshardsError: the file is unreadable, has an unknown key (the hint names the nearest
            one), a value that is not one, or candidates that cannot be compared.
    """
    content = load_sections(path, SECTIONS)
    own = _parse({name: content[name] for name in OWN_SECTIONS if name in content}, path)
    if (own.budget.steps is None) == (own.budget.tokens is None):
        raise SoftshardsError("budget needs `steps` or `tokens`, one of them", path=path)
    base = content.get("base") or {}
    if not isinstance(base, dict):
        raise SoftshardsError("base must be a mapping", path=path)
    base = check_settings(base, "base", path)
    _refuse_own_flags(base, "base", path)
    candidates, slices = _combine(own, content, DEFAULTS | base, out, path)
    _check_comparable(candidates, path)
    return Selection(
        candidates=candidates,
        slices=slices,
        teachers=own.teachers,
        budget=own.budget,
        constraints=own.constraints,
        checks=own.checks,
        metric=_metric(own, path),
    )


def _parse(content: Settings, path: Path) -> _File:
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        hint = ""
        if first["type"] == "extra_forbidden":
            kinds: dict[str, type[_Section]] = {
                "budget": Budget,
                "constraints": Constraints,
                "checks": Checks,
            }
            known = [*kinds.get(place[0], Teacher).model_fields]
            near = difflib.get_close_matches(place[-1], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(known)}"
        what = "unknown key" if hint else first["msg"]
        raise SoftshardsError(f"{'.'.join(place)}: {what}", path=path, hint=hint) from error


def _combine(
    own: _File, content: Settings, base: Settings, out: Path, path: Path
) -> tuple[list[Candidate], list[SliceConfig]]:
    """Return the candidates of all teachers, and the students to slice."""
    sets = _named_sets(own)
    candidates: list[Candidate] = []
    slices: dict[Path, SliceConfig] = {}
    for name, labels, probe in sets:
        given: Settings = {"labels": labels, "eval_labels": probe}
        made = combine(content, base | given, out, path)
        slices = slices or {each.out: each for each in made.slices}  # one, whatever the teacher
        for trial in made.trials:
            _refuse_own_flags(trial.settings, trial.name, path, but=given.keys())
            if len(sets) > 1:
                trial = _prefixed(trial, name, out)
            if len(trial.name) > LONGEST_NAME or trial.name in {each.name for each in candidates}:
                raise SoftshardsError(
                    f"the name is too long, or there twice: {trial.name}",
                    path=path,
                    hint="rename the teachers or their labels",
                )
            cut = slices.get(trial.config.student)
            candidates.append(Candidate(trial=trial, teacher=name, slice=cut))
    return candidates, list(slices.values())


def _named_sets(own: _File) -> list[tuple[str, str, str]]:
    """Return each set to train on: a name, its place, and the probe of its teacher."""
    found = []
    for teacher, sets in own.teachers.items():
        if isinstance(sets.labels, str):
            found.append((slug(teacher), sets.labels, sets.probe))
            continue
        for kind, place in sets.labels.items():
            name = kind if len(own.teachers) == 1 else f"{teacher}-{kind}"
            found.append((slug(name), place, sets.probe))
    return found


def _prefixed(trial: Trial, name: str, out: Path) -> Trial:
    full = f"{name}_{trial.name}"
    config = replace(trial.config, out=out / TRIALS / full)
    return replace(trial, name=full, label=f"{name}_{trial.label}", config=config)


def _metric(own: _File, path: Path) -> Metric:
    if len(own.teachers) == 1:
        return own.rank_by or "kl"
    if own.rank_by == "kl":
        raise SoftshardsError(
            "rank_by: kl with several teachers: KL to different teachers does not compare, a "
            "student is nearest to the teacher that is easiest to imitate",
            path=path,
            hint="leave rank_by out: candidates are ranked by ce, their cross-entropy on the text "
            "of the probe",
        )
    return "ce"


def _refuse_own_flags(
    settings: Settings, where: str, path: Path, but: Collection[str] = ()
) -> None:
    for flag in settings:
        if flag in SET_BY_SELECT and flag not in but:
            raise SoftshardsError(
                f"{where} sets {flag}, which the selection sets itself: {SET_BY_SELECT[flag]}",
                path=path,
            )


def _check_comparable(candidates: list[Candidate], path: Path) -> None:
    """Check that the same step is the same work, at the same learning rate, for all."""
    first = candidates[0].trial
    tokens = first.config.packs_per_step * first.config.pack_tokens
    for candidate in candidates:
        config = candidate.trial.config
        if config.packs_per_step * config.pack_tokens != tokens:
            raise SoftshardsError(
                f"{candidate.name} trains on {config.packs_per_step * config.pack_tokens} tokens "
                f"per step, {first.name} on {tokens}: at the same step they have not seen the same",
                path=path,
                hint="keep packs_per_step times pack_tokens the same",
            )
        if config.schedule not in SCHEDULES:
            raise SoftshardsError(
                f"{candidate.name}: schedule is {config.schedule}, whose learning rate falls all "
                "the way: candidates would be compared in the middle of it",
                path=path,
                hint=f"leave it out for {SCHEDULES[0]}, or take one of {', '.join(SCHEDULES)}",
            )
