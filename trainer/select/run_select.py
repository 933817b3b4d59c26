"""`trainer select`: select.yaml -> candidates -> rungs -> the best student and its settings."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas import LabelSet, SoftshardsError
from schemas.atomic import write_atomic
from schemas.bench_results import read_bench_results
from schemas.fingerprint import sha256_json
from schemas.ray_cluster import require_ray
from trainer.console import message_console, table_console
from trainer.run_files import FINAL
from trainer.select.rungs import Rung, longest, plan_rungs
from trainer.select.select_config import SelectConfig
from trainer.select.select_file import DECAY, SCHEDULES, Candidate, Selection, read_select
from trainer.select.select_page import render_page
from trainer.select.select_record import (
    FLOPS,
    RECORD,
    CandidateRecord,
    Decisive,
    ForecastAt,
    Outcome,
    RungRecord,
    SelectRecord,
)
from trainer.select.select_tables import print_plan, print_result, to_markdown
from trainer.select.student_shapes import Shape, measure_shapes, rule_out, unchecked_warnings
from trainer.select.task_checks import (
    SetFacts,
    coverage_warnings,
    set_facts,
    student_warning,
    teacher_warnings,
)
from trainer.select.teacher_sets import open_sets
from trainer.select.train_rungs import (
    Outcomes,
    Train,
    begin_rungs,
    read_curve,
    require_same_rungs,
    tokens_at,
    train_rungs,
    warm_up_steps,
)
from trainer.sweep.grid import Settings
from trainer.sweep.run_sweep import open_trial
from trainer.sweep.train_trials import train_all
from trainer.sweep.trial_folder import settings_yaml
from trainer.train.run_lock import run_lock
from trainer.train.run_record import RunInputs

BEST = "best"
REPORT = "select"
UNTRAINED = "untrained"
MEASUREMENTS = 2
"""Held-out measurements in the first rung; as often in the others, where forecasts need them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The candidates with all their settings, and the rungs.

    Attributes:
        candidates: those that no constraint rules out.
        ruled_out: all others, and why.
        shapes: of all.
        probes: digest of each teacher's probe.
    """

    asked: Selection
    candidates: list[Candidate]
    ruled_out: dict[str, str]
    shapes: dict[str, Shape]
    rungs: list[Rung]
    probes: dict[str, str]
    facts: list[SetFacts]
    warnings: list[str]

    @property
    def decisive(self) -> Decisive:
        """What decides who is trained further."""
        return Decisive(
            candidates=[each.name for each in self.candidates],
            rungs=[(rung.step, rung.candidates) for rung in self.rungs],
            metric=self.asked.metric,
            probes=self.probes,
        )


def select(file: Path, config: SelectConfig, train: Train = train_all) -> int:
    """Find the best student of a file.

    Args:
        file: select.yaml.
        config: the settings.
        train: trains the trials of a rung.

    Returns:
        0, or 128 + n after signal n.

    Raises:
        SoftshardsError: the file, a label set or the content of OUT does not fit, no candidate is
            left, or Ray is not installed.
    """
    asked = read_select(file, config.out)
    if train is train_all and not (config.dry_run or (config.out / RECORD).exists()):
        require_ray("sweep")  # students are sliced before Ray starts
    settings = config.sweep
    sets = open_sets(asked)
    bench = read_bench_results(config.bench) if config.bench is not None else None
    console = message_console()
    facts, warnings = _check_sets(asked, sets)
    shapes = measure_shapes(asked.candidates, bench)
    there = [] if config.dry_run else [each.name for each in asked.candidates if each.is_there]
    possible = _plan(asked, sets, shapes, facts, warnings, required=there)
    for warning in possible.warnings:
        console.print(f"warning: {warning}")
    if config.dry_run:
        record = _record(possible, Outcomes(), {}, config)
        if config.json:
            sys.stdout.write(record.to_json())
        else:
            print_plan(table_console(), record)
        return 0
    with run_lock(config.out, "trainer select"):
        if all(shape.parameters is not None for shape in shapes.values()):
            require_same_rungs(config.out, possible.decisive)
        needed = {each.slice.out for each in possible.candidates if each.slice is not None}
        for student in asked.slices:
            if student.out in needed:
                from trainer.slice.slice_teacher import slice_teacher

                slice_teacher(student)
        if len(there) < len(shapes):  # what was sliced now is no estimate any more
            shapes = measure_shapes(asked.candidates, bench)
        plan = _plan(asked, sets, shapes, facts, warnings, required=list(shapes))
        made = {each.out for each in asked.slices}
        inputs: dict[str, RunInputs] = {}
        for candidate in plan.candidates:
            trial = candidate.trial
            labels = sets[str(trial.config.labels)]
            inputs[candidate.name] = open_trial(trial.config, labels, made, dry_run=False)
        trials = [each.trial for each in plan.candidates]
        begin_rungs(config.out, plan.decisive, trials, inputs)
        untrained = _measure_untrained(plan, inputs, config.out)
        ended = train_rungs(trials, plan.rungs, asked.metric, settings, inputs, train)
        if isinstance(ended, int):
            console.print(f"stopped by signal {ended}: the same command resumes the selection")
            return 128 + ended
        record = _record(plan, ended, untrained, config)
        _write(record, plan, inputs, config.out)
    if config.json:
        sys.stdout.write(record.to_json())
    else:
        print_result(table_console(), record)
    return 0


def _check_sets(asked: Selection, sets: Mapping[str, LabelSet]) -> tuple[list[SetFacts], list[str]]:
    """Return the facts of all label sets, and warnings of poor candidates."""
    configs = [each.trial.config for each in asked.candidates]
    probes = list(dict.fromkeys(str(each.eval_labels) for each in configs))
    others = list(dict.fromkeys(str(each.labels) for each in configs))
    facts = {place: set_facts(sets[place]) for place in [*probes, *others]}
    warnings = [w for place in probes for w in teacher_warnings(facts[place], asked.checks)]
    warnings += [w for found in facts.values() for w in coverage_warnings(found, asked.checks)]
    return list(facts.values()), warnings


def _plan(
    asked: Selection,
    sets: Mapping[str, LabelSet],
    shapes: dict[str, Shape],
    facts: list[SetFacts],
    warnings: list[str],
    *,
    required: Collection[str],
) -> Plan:
    """Rule out candidates, plan the rungs of the others, and complete their settings.

    Args:
        asked: what is asked for.
        sets: all label sets, by their place.
        shapes: of all candidates.
        facts: of the label sets.
        warnings: of poor candidates.
        required: as for `rule_out`.

    Raises:
        SoftshardsError: constraints rule out all candidates, or the budget is too small.
    """
    ruled_out = rule_out(shapes, asked.constraints, required)
    unchecked = unchecked_warnings(shapes, asked.constraints, ruled_out)
    left = [each for each in asked.candidates if each.name not in ruled_out]
    if not left:
        raise SoftshardsError(
            "the constraints rule out all candidates:"
            + "".join(f"\n  {name}: {why}" for name, why in ruled_out.items()),
            hint="relax `constraints`, or add smaller students",
        )
    budget = asked.budget
    steps = budget.steps
    if steps is None:
        assert budget.tokens is not None, "read_select requires one of them"
        most = int(budget.tokens // asked.step_tokens)
        steps = longest(most, most, len(left), budget.factor, budget.rungs)
        if not steps:
            raise SoftshardsError(
                f"budget.tokens is {budget.tokens:,.0f}: too few for a step of {len(left)} "
                f"candidates, {asked.step_tokens:,} tokens each",
                hint="raise it, or take fewer candidates",
            )
    rungs = plan_rungs(len(left), steps, budget.factor, budget.rungs)
    complete = [_complete(each, steps, rungs, asked, sets) for each in left]
    return Plan(
        asked=asked,
        candidates=complete,
        ruled_out=ruled_out,
        shapes=shapes,
        rungs=rungs,
        probes={c.teacher: sets[str(c.trial.config.eval_labels)].content_digest for c in complete},
        facts=facts,
        warnings=[*warnings, *unchecked, *_rung_warnings(complete, rungs)],
    )


def _rung_warnings(candidates: list[Candidate], rungs: list[Rung]) -> list[str]:
    """Return a warning if the first rung says nothing about the others."""
    warm = max(warm_up_steps(each.trial, rungs[-1].step) for each in candidates)
    if len(rungs) == 1 or rungs[0].step > warm:
        return []
    return [
        f"the first rung ends after step {rungs[0].step}, in the warm-up of the learning rate "
        f"({warm:g} steps): its ranks say little; raise budget.steps, or lower warmup or "
        "budget.rungs"
    ]


def _complete(
    candidate: Candidate,
    steps: int,
    rungs: list[Rung],
    asked: Selection,
    sets: Mapping[str, LabelSet],
) -> Candidate:
    """Return a candidate that trains for so many steps."""
    config, given = candidate.trial.config, candidate.trial.settings
    labels = sets[str(config.labels)]
    settings: Settings = {
        "max_steps": steps,
        # Packs are never more than full, so these epochs are at least as long.
        "epochs": math.ceil(steps * asked.step_tokens / max(1, labels.tokens)) + 1,
        "eval_every": max(1, rungs[0].step // MEASUREMENTS),
    } | given
    if config.schedule == SCHEDULES[0]:
        decay = {"num_decay_steps": round(DECAY * steps)}
        settings["schedule_args"] = {**decay, **(config.schedule_args or {})}
    return candidate.with_settings(settings)


def _measure_untrained(plan: Plan, inputs: Mapping[str, RunInputs], out: Path) -> dict[str, float]:
    """Return the KL of each untrained student to its teacher, and warn of those that are good."""
    from trainer.evaluate.evaluate_config import EvaluateConfig
    from trainer.evaluate.evaluate_models import measure_models

    found: dict[tuple[Path, str], float | None] = {}
    kls = {}
    for candidate in plan.candidates:
        config = candidate.trial.config
        if config.from_config:
            continue
        student, probe = inputs[candidate.name].config.student, str(config.eval_labels)
        if (student, probe) not in found:
            digest = sha256_json(inputs[candidate.name].held_out.digests)
            results = out / f"{UNTRAINED}-{digest[:16]}.json"
            asked = EvaluateConfig(labels=probe, model=(student,), out=results)
            try:
                entry = measure_models(asked)[1][0][1]
            except SoftshardsError as error:  # its training says so again, and fails alone
                message_console().print(f"warning: {student} cannot be measured: {error}")
                found[student, probe] = None
                continue
            kl = entry.all.exact_kl if entry.all.exact_kl is not None else entry.all.kl
            found[student, probe] = kl
            if warning := student_warning(f"{student} on {probe}", kl, plan.asked.checks):
                plan.warnings.append(warning)
                message_console().print(f"warning: {warning}")
        if (known := found[student, probe]) is not None:
            kls[candidate.name] = known
    return kls


def _record(
    plan: Plan,
    ended: Outcomes,
    untrained: Mapping[str, float],
    config: SelectConfig,
) -> SelectRecord:
    """Return the record of a selection, or of its plan if nothing has ended."""
    complete = {each.name: each for each in plan.candidates}
    candidates = [
        _candidate(complete.get(each.name, each), plan, ended, untrained.get(each.name))
        for each in plan.asked.candidates
    ]
    rungs = _rungs(candidates, plan, config, is_plan=not ended.finalists)
    last, step_tokens = plan.rungs[-1].step, plan.asked.step_tokens
    tokens = sum(rung.tokens for rung in rungs)
    full = last * step_tokens
    if ended.finalists:  # packs are not full: as many tokens as the finalists saw
        full = tokens_at(complete[ended.finalists[0]].trial.folder, last)
    best = ended.finalists[0] if ended.finalists else None
    return SelectRecord(
        metric=plan.asked.metric,
        warnings=plan.warnings,
        teachers=plan.facts,
        rungs=rungs,
        candidates=candidates,
        tokens=tokens,
        exhaustive_tokens=len(plan.candidates) * full,
        best=best,
        config=str(config.out / f"{BEST}.yaml") if best else None,
    )


def _candidate(
    candidate: Candidate, plan: Plan, ended: Outcomes, untrained: float | None
) -> CandidateRecord:
    trial, name = candidate.trial, candidate.name
    reason = plan.ruled_out.get(name) or ended.out.get(name) or ended.failed.get(name)
    if name in ended.finalists[1:]:
        rank = ended.finalists.index(name) + 1
        reason = f"rank {rank} of {len(ended.finalists)} at the last step"
    outcome: Outcome = "candidate"
    if name in plan.ruled_out:
        outcome = "ruled out"
    elif name in ended.failed:
        outcome = "failed"
    elif name in ended.out:
        outcome = "eliminated"
    elif ended.finalists:
        outcome = "best" if name == ended.finalists[0] else "finalist"
    is_trained = outcome not in ("ruled out", "candidate")
    curve = read_curve(trial.folder, plan.asked.metric) if is_trained else []
    shape, last = plan.shapes[name], curve[-1] if curve and outcome != "failed" else None
    return CandidateRecord(
        name=name,
        teacher=candidate.teacher,
        student=str(trial.config.student),
        settings=trial.settings,
        parameters=shape.parameters,
        bytes=shape.bytes,
        outcome=outcome,
        reason=reason,
        step=last[0] if last else None,
        value=last[1] if last else None,
        tokens=tokens_at(trial.folder, plan.rungs[-1].step) if is_trained else 0,
        untrained_kl=untrained,
        curve=curve,
        forecasts=[
            ForecastAt(step=step, value=made.value, low=made.low, high=made.high)
            for step, made in ended.forecasts.get(name, [])
        ],
    )


def _rungs(
    candidates: list[CandidateRecord], plan: Plan, config: SelectConfig, *, is_plan: bool
) -> list[RungRecord]:
    """Return the cost of each rung: what was trained, or the most that it can be."""
    folders = {each.name: each.trial.folder for each in plan.candidates}
    sizes = {c.name: c.parameters or 0 for c in candidates if c.outcome != "ruled out"}
    found, start = [], 0
    for rung in plan.rungs:
        if is_plan:  # the largest students may be those that stay
            here = sorted(sizes, key=lambda name: -sizes[name])[: rung.candidates]
            tokens = dict.fromkeys(here, (rung.step - start) * plan.asked.step_tokens)
        else:
            seen = {
                name: tokens_at(folder, rung.step) - tokens_at(folder, start)
                for name, folder in folders.items()
            }
            tokens = {name: count for name, count in seen.items() if count}
        flop = sum(FLOPS * sizes[name] * count for name, count in tokens.items())
        found.append(
            RungRecord(
                step=rung.step,
                candidates=len(tokens),
                tokens=sum(tokens.values()),
                pflop=flop / 1e15,
                # A checkpoint has the weights and two averages of the optimizer, in float32.
                disk=sum(12 * sizes[name] for name in tokens),
                hours=flop / (config.tflops * 1e12) / 3600 if config.tflops else None,
            )
        )
        start = rung.step
    return found


def _write(record: SelectRecord, plan: Plan, inputs: Mapping[str, RunInputs], out: Path) -> None:
    """Write the settings of the best candidate, and the reports."""
    assert record.best is not None
    best = next(each.trial for each in plan.candidates if each.name == record.best)
    path = out / f"{BEST}.yaml"
    head = (
        f"# The best of {len(record.candidates)} candidates of `trainer select`: {best.name}\n"
        f"# It is trained already: {best.folder / FINAL}. To train it again:\n"
        f"# trainer train --config {path}\n"
    )
    text = settings_yaml(best, inputs[best.name].student, out / BEST)
    write_atomic(path, head + text)
    record.write(out / RECORD)
    write_atomic(out / f"{REPORT}.md", to_markdown(record))
    write_atomic(out / f"{REPORT}.html", render_page(record))
    message_console().print(f"report: {out / REPORT}.html; settings of the best: {path}")
