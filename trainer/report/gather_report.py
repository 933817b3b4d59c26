"""Read measurements, speeds, runs and label sets into the content of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.bench_results import BenchModel, BenchResults, read_bench_results
from schemas.ledger import read_ledger
from schemas.prices import Prices, read_prices
from trainer.evaluate.bootstrap import from_text, interval
from trainer.evaluate.model_differences import differences
from trainer.evaluate.results import Bin, EvaluationResults, MeasuredModel, MeasuredTeacher
from trainer.losses.loss_table import LOSSES
from trainer.report.bench_speeds import speed_of
from trainer.report.break_even import Savings, savings
from trainer.report.other_findings import answer_tables, audit_lines, export_line
from trainer.report.report_config import ReportConfig
from trainer.report.report_data import (
    Estimate,
    LabelSetCard,
    ReportContent,
    ReportedModel,
    Role,
    known_sum,
)
from trainer.report.reproduction import reproduction
from trainer.report.ship_verdict import choose_control, choose_student, judge
from trainer.report.task_summary import task_rows
from trainer.run_files import FINAL, RESULT
from trainer.train.run_record import RunResult

Named = tuple[str, Path]
WITHOUT_TEACHER = ("token", "router")
"""Inputs of the losses that take nothing from the teacher."""


def gather_report(config: ReportConfig) -> tuple[ReportContent, list[Bin]]:
    """Return the content of the report, and the bins of the teacher's reliability diagram.

    Raises:
        SoftshardsError: something it needs was not measured, or cannot be read.
    """
    if not 0 <= config.keep <= 1:
        raise SoftshardsError(f"--keep is {config.keep}; it must be from 0 to 1")
    results = EvaluationResults.open(config.eval)
    bench = read_bench_results(config.bench) if config.bench else None
    runs, baselines = (
        [parse_named(value, flag) for value in values]
        for flag, values in (("--run", config.run), ("--baseline", config.baseline))
    )
    _check_names([name for name, _ in runs + baselines])
    prices = read_prices(config.prices) if config.prices else None
    teacher, bench_teacher = _teacher(results, bench)
    models = [teacher]
    models += [_model(n, "baseline", p, results, bench, bench_teacher) for n, p in baselines]
    models += [_model(n, "trained", p, results, bench, bench_teacher) for n, p in runs]
    if prices is not None:
        for model in models:
            device = prices.device("teacher" if model is teacher else "students")
            model.cost = device.million_tokens(model.generating)
    student = choose_student(models, config.student)
    if config.student is not None and student is None:
        raise SoftshardsError(
            f"--student {config.student}: there is no --run of that name",
            hint=f"runs are {', '.join(name for name, _ in runs) or 'not given'}",
        )
    control = choose_control(models, student) if student else None
    _set_differences(models, control or student)
    label_sets = [open_label_set(path, allow_partial=True) for path in config.labels]
    cards = [_card(labels) for labels in label_sets]
    label_seconds = known_sum([card.engine_seconds for card in cards])
    tasks = task_rows(results, models)
    content = ReportContent(
        title=config.title,
        verdict=judge(
            student,
            teacher,
            control,
            label_seconds=label_seconds,
            keep=config.keep,
            tasks=tasks,
            saved=_savings(prices, student, teacher, label_sets) if prices else None,
        )
        if student
        else None,
        held_out=results.label_set,
        documents=max((m.measured.documents for m in models if m.measured), default=0),
        models=models,
        tasks=tasks,
        answers=answer_tables(results, models),
        exports=[export_line(folder) for folder in config.export],
        audit=audit_lines(config.audit) if config.audit else [],
        label_sets=cards,
        label_seconds=label_seconds,
        bench=bench.engine if bench else {},
        currency=prices.currency if prices else None,
        reproduction=reproduction(
            config, label_sets, models, results, bench.engine if bench else {}
        ),
    )
    return content, results.teacher.calibration


def _savings(
    prices: Prices, student: ReportedModel, teacher: ReportedModel, label_sets: list[LabelSet]
) -> Savings:
    return savings(
        prices,
        teacher_speed=teacher.generating,
        student_speed=student.generating,
        ledgers=[read_ledger(s.path) if s.view is None else None for s in label_sets],
        training_seconds=student.seconds,
        training_tokens=student.tokens,
    )


def parse_named(value: str, flag: str) -> Named:
    """Return name and folder of NAME=DIR.

    Raises:
        SoftshardsError: it is something else, or there is no such folder.
    """
    name, equals, path = value.partition("=")
    if not (name and equals and path):
        raise SoftshardsError(f"{flag} {value}: it must be NAME=DIR")
    if not Path(path).is_dir():
        raise SoftshardsError(f"{flag} {name}: there is no such folder", path=path)
    return name, Path(path)


def model_folder(path: Path) -> Path:
    """Return the folder of a run's model, or the folder itself if it is a model's."""
    return path / FINAL if (path / FINAL).is_dir() else path


def _check_names(names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1 or name == "teacher"), None)
    if twice is not None:
        raise SoftshardsError(
            f"the name {twice} stands for two models", hint="give each --run and --baseline its own"
        )


def _accuracy_kept(student: MeasuredModel, teacher: MeasuredTeacher) -> Estimate | None:
    """Return the share of the teacher's accuracy that a student has, paired over documents."""
    if student.all.accuracy is None or not teacher.accuracy:
        return None
    kept = Estimate(value=student.all.accuracy / teacher.accuracy)
    texts = [one.replicates.get("accuracy") for one in (student, teacher)]
    if texts[0] is not None and texts[1] is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = from_text(texts[0]) / from_text(texts[1])
        ratios[~np.isfinite(ratios)] = np.nan
        kept.low, kept.high = interval(ratios, student.documents)
    return kept


def _teacher(
    results: EvaluationResults, bench: BenchResults | None
) -> tuple[ReportedModel, BenchModel | None]:
    """Return the teacher, and its speeds."""
    teacher = results.teacher
    measured = [model for model in results.models if model.weights == teacher.weights]
    # The checkpoint of --teacher, or the teacher measured like a model.
    sizes = teacher if teacher.parameters is not None or not measured else measured[0]
    places = [*([teacher.path] if teacher.path else []), *(p for m in measured for p in m.paths)]
    paths = [Path(place) for place in places]
    found = ReportedModel(
        name="teacher",
        role="teacher",
        path=teacher.path or ", ".join(places[:1]) or f"weights {teacher.weights[:16]}",
        ppl=teacher.ppl,
        at_least=teacher.lower_bound,
        intervals=teacher.intervals,
        ece=teacher.ece,
        accuracy=teacher.accuracy,
        parameters=sizes.parameters,
        non_embedding=sizes.non_embedding,
        bytes=sizes.bytes,
        speed=speed_of(bench, "teacher", paths),
    )
    return found, bench.find("teacher", paths) if bench else None


def _model(
    name: str,
    role: Role,
    path: Path,
    results: EvaluationResults,
    bench: BenchResults | None,
    teacher: BenchModel | None,
) -> ReportedModel:
    model = model_folder(path)
    found = results.find(model)
    training = None
    if (path / RESULT).is_file():
        training = RunResult.read(path / RESULT, "the result of `trainer train`")
    losses = _losses(training)
    return ReportedModel(
        name=name,
        role=role,
        path=str(path),
        ppl=found.all.ppl,
        metrics=found.all,
        intervals=found.intervals,
        accuracy=found.all.accuracy,
        accuracy_kept=_accuracy_kept(found, results.teacher),
        parameters=found.parameters,
        non_embedding=found.non_embedding,
        bytes=found.bytes,
        speed=speed_of(bench, name, [model, path], teacher),
        losses=losses,
        tokens_only=bool(losses) and not any(map(_takes_teacher, losses)),
        steps=training.steps if training else None,
        tokens=training.tokens if training else None,
        seconds=training.seconds if training else None,
        measured=found,
        training=training,
    )


def _losses(training: RunResult | None) -> list[str]:
    texts = training.config.get("loss") if training else None
    return [str(text) for text in texts] if isinstance(texts, list) else []


def _takes_teacher(loss: str) -> bool:
    """Return True if a loss, as typed, has a weight and takes something from the teacher."""
    name, _, weight = loss.partition("=")
    if name in LOSSES and LOSSES[name].inputs in WITHOUT_TEACHER:
        return False
    try:
        return float(weight) != 0
    except ValueError:  # a weight that changes
        return True


def _set_differences(models: list[ReportedModel], reference: ReportedModel | None) -> None:
    """Set the differences of all models from one."""
    if reference is None or reference.measured is None:
        return
    for model in models:
        if model.measured is not None and model is not reference:
            model.differences = {
                name: Estimate(value=d.value, low=d.interval.low, high=d.interval.high)
                for name, d in differences(model.measured, reference.measured).items()
            }


def _card(labels: LabelSet) -> LabelSetCard:
    manifest = labels.manifest
    is_whole = labels.view is None  # a view selects a part of the stored rows
    ledger = read_ledger(labels.path) if is_whole else None
    seconds = [cost.engine_seconds for cost in ledger.engines.values()] if ledger else []
    return LabelSetCard(
        path=labels.place,
        identity=manifest.identity,
        status=manifest.status,
        digests=dict(labels.digests),
        facts=_facts(labels),
        rows=labels.rows,
        labels=labels.labels,
        bytes_per_label=labels.stored_bytes / max(1, labels.labels) if is_whole else None,
        engine_seconds=sum(seconds) if seconds else None,
    )


def _facts(labels: LabelSet) -> dict[str, str]:
    """Return the provenance that a reader cares about: teacher, input files, engine and cost."""
    provenance = labels.manifest.provenance
    facts: dict[str, str] = {
        name: str(provenance[name]) for name in ("teacher", "softshards") if name in provenance
    }
    inputs = provenance.get("plan", {}).get("inputs", {})
    if inputs:
        facts["input"] = ", ".join(f"{name} (SHA-256 {d[:12]})" for name, d in inputs.items())
    if (ledger := read_ledger(labels.path)) is not None:
        facts["engine"] = "; ".join(
            f"{name}: {cost.engine_seconds:,.0f} s, {cost.tokens_per_s:,.0f} tokens/s"
            for name, cost in ledger.engines.items()
        )
    return facts
