"""`trainer evaluate`: measure what the results lack, and compare. Imports torch only to measure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from rich.table import Table

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.hub_model import ModelSource, locate_model
from trainer.console import message_console, table_console
from trainer.evaluate.answers.answer_flags import AnswerFlags
from trainer.evaluate.answers.measure_answers import measure_answers
from trainer.evaluate.answers.text_metrics import Overlap
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluation_tables import (
    ModelAt,
    differences_table,
    exact_line,
    group_table,
    main_table,
    worst_line,
)
from trainer.evaluate.grouping import ALWAYS, Grouping, check_dimensions, plan_groups
from trainer.evaluate.model_differences import differences
from trainer.evaluate.results import (
    EvaluationResults,
    HeldOutSet,
    Measured,
    MeasuredModel,
    MeasuredTeacher,
    TaskAndAnswerResults,
    kept_positions_note,
    model_digest,
    open_results,
)
from trainer.evaluate.tasks.measure_tasks import measure_tasks, plan_tasks
from trainer.evaluate.tasks.task_flags import TaskFlags
from trainer.evaluate.teacher_facts import add_checkpoint, measure_teacher, weight_bytes
from trainer.evaluate.worst_group import worst_group


def evaluate(
    config: EvaluateConfig, tasks: TaskFlags | None = None, answers: AnswerFlags | None = None
) -> int:
    """Measure every model that OUT lacks, and print all; return the exit code.

    Raises:
        SoftshardsError: there is nothing to do, or as `measure_models`, `plan_tasks`,
            `measure_tasks` and `measure_answers`.
    """
    _check_there_is_work(config, tasks, answers)
    plan = plan_tasks(tasks, config.dtype) if tasks and tasks.tasks else None
    overlap = Overlap() if answers and answers.answers else None
    models: list[ModelAt] = []
    results: TaskAndAnswerResults
    if config.labels is None:
        results = open_results(config.out)
    else:
        results, models = measure_models(config)
    more = [] if plan is None else measure_tasks(config, plan, results)
    if answers is not None and overlap is not None:
        more += measure_answers(answers, overlap, results, config.out)
    if config.json:
        shown = results.to_dict()
        if isinstance(results, EvaluationResults):
            shown["differences"] = _differences(models, results.teacher)
        sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    else:
        console = table_console()
        if isinstance(results, EvaluationResults):
            for table in _tables(models, results.teacher, config.by):
                console.print(table)
        for table in more:
            console.print(table)
    return 0


def _check_there_is_work(
    config: EvaluateConfig, tasks: TaskFlags | None, answers: AnswerFlags | None
) -> None:
    """Refuse a command line that names nothing to measure, or nothing to measure on.

    Raises:
        SoftshardsError: says which flag is missing.
    """
    has_tasks = tasks is not None and bool(tasks.tasks)
    if config.labels is None and not has_tasks and not (answers and answers.answers):
        raise SoftshardsError(
            "there is nothing to measure on",
            hint="give --labels with a held-out label set, --tasks, or --answers",
        )
    if config.labels is None and config.model and not has_tasks:
        raise SoftshardsError(
            "--model is measured on --labels or --tasks, and both are missing",
            hint="give one of them, or leave --model out",
        )
    measures = config.labels is not None and config.teacher is None
    if not config.model and (has_tasks or measures):
        raise SoftshardsError("--model is missing", hint="give a checkpoint folder")


def measure_models(config: EvaluateConfig) -> tuple[EvaluationResults, list[ModelAt]]:
    """Measure every model that OUT lacks, and write OUT.

    Returns:
        The content of OUT, and its entry for each model of `config`, in their order.

    Raises:
        SoftshardsError: OUT belongs to a different label set, a model does not fit it, or no row
            has a value for --by.
    """
    if config.top_k < 1:
        raise SoftshardsError(f"--top-k {config.top_k}: it must be at least 1")
    check_dimensions(config.by)
    assert config.labels is not None, "the command checks it"
    console = message_console()

    def locate(model: Path) -> ModelSource:
        return locate_model(model, say=lambda line: console.print(line))

    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    if note := kept_positions_note(labels.manifest.identity):
        console.print(f"warning: {labels.place}: {note}")
    results = _open_results(config.out, labels)
    if config.teacher is not None:
        results.teacher = add_checkpoint(results.teacher, locate(config.teacher), labels)
        if not results.teacher.proved:
            scope = labels.manifest.identity.weights_scope
            console.print(
                f"warning: the label set's teacher is {scope}, not a digest of files: nothing "
                f"proves that it is {config.teacher}, but its tokenizer is the labels'"
            )
    config = replace(config, top_k=min(config.top_k, labels.manifest.identity.k))

    @cache
    def grouping(*by: str) -> Grouping:
        return plan_groups(labels, by)

    models: list[ModelAt] = []
    for model in config.model:
        source = locate(model)
        path, place = source.folder, str(source)
        digest = model_digest(path)
        entry = results.lookup(digest, dtype=config.dtype, vocab_map=config.vocab_map)
        wanted = dict.fromkeys([*config.by, *(entry.by if entry else ())])
        by = [name for name in wanted if name not in ALWAYS]
        if entry is not None and entry.top_k == config.top_k and entry.by.keys() >= set(config.by):
            console.print(f"{place}: reused")
        else:
            measured = _measure(path, digest, labels, config, grouping(*by), place)
            if entry is None:
                entry = measured
                results.models.append(entry)
            else:  # what other commands measured of the model stays
                for name in measured.model_fields_set - {"paths"}:
                    setattr(entry, name, getattr(measured, name))
        if place not in entry.paths:
            entry.paths.append(place)
        results.write(config.out)
        models.append((model, entry))
    results.write(config.out)
    return results, models


def _measure(
    path: Path,
    digest: str,
    labels: LabelSet,
    config: EvaluateConfig,
    grouping: Grouping,
    place: str,
) -> MeasuredModel:
    """Measure a model.

    Args:
        path: its folder.
        digest: of its weights.
        labels: the held-out set.
        config: the settings.
        grouping: parts of the set to measure separately.
        place: the folder, or the repository that it comes from.
    """
    import torch

    from trainer.evaluate.exact_kl import open_exact_kl
    from trainer.evaluate.measure import measure
    from trainer.evaluate.worst_sequences import WorstSequences
    from trainer.ops.bf16_support import emulation_warning
    from trainer.student.context_check import check_context, longest_row
    from trainer.student.student import count_parameters, load_student

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = load_student(path, labels, map_vocab=config.vocab_map).eval()
    warnings = [check_context(student, longest_row(labels, student))]
    if config.dtype == "bf16":
        warnings.append(emulation_warning(device))
    for note in (*student.notes, *(f"warning: {each}" for each in warnings if each)):
        message_console().print(f"{place}: {note}")
    student.to(device)
    worst = WorstSequences(config.worst, path if config.vocab_map else labels.tokenizer_dir)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
        tally = measure(
            student,
            labels,
            device=device,
            pack_tokens=config.pack_tokens,
            top_k=config.top_k,
            grouping=grouping,
            worst=worst,
            exact=open_exact_kl(labels, student, device),
        )
    if not tally.documents:
        raise SoftshardsError(
            "--vocab-map: every row has a token that the student does not know",
            path=path,
            hint="use a student whose tokenizer has the tokens of the held-out rows",
        )
    counted = count_parameters(student.model)
    whole, by = tally.whole, tally.groups()
    worst_groups = {name: worst_group(groups) for name, groups in by.items()}
    return MeasuredModel(
        paths=[place],
        weights=digest,
        dtype=config.dtype,
        vocab_map=config.vocab_map,
        top_k=config.top_k,
        parameters=counted["parameters"],
        non_embedding=counted["non_embedding"],
        bytes=weight_bytes(path),
        documents=whole.documents,
        all=whole.metrics,
        intervals=whole.intervals(),
        replicates=whole.replicates(),
        by=by,
        worst_groups={name: group for name, group in worst_groups.items() if group},
        calibration=tally.calibration(),
        worst=worst.found(),
    )


def _tables(
    models: list[ModelAt], teacher: MeasuredTeacher, by: tuple[str, ...]
) -> Iterator[Table | str]:
    """Yield the tables of a command, and a line for each worst group."""
    yield main_table(models, teacher)
    if any(model.replicates for _, model in models[1:]):
        yield differences_table(models)
    for path, model in models:
        if line := exact_line(model):
            yield f"{path}: {line}"
        for dimension in dict.fromkeys(by):
            yield group_table(path, model, dimension)
        for dimension in ALWAYS:
            line = worst_line(model, dimension)
            if line and dimension not in by:
                yield f"{path}: {line}"


def _differences(models: list[ModelAt], teacher: MeasuredTeacher) -> list[dict[str, object]]:
    """Return the differences of each model from the teacher, and from the models before it."""
    references: list[tuple[str, Measured]] = [("teacher", teacher)]
    found: list[dict[str, object]] = []
    for path, model in models:
        for name, reference in references:
            of_pair = differences(model, reference)
            figures = {
                figure: {"value": d.value, "interval": d.interval} for figure, d in of_pair.items()
            }
            found.append({"model": str(path), "from": name, "figures": figures})
        references.append((str(path), model))
    return found


def _open_results(out: Path, labels: LabelSet) -> EvaluationResults:
    """Return the results in `out`, or new ones without models.

    Raises:
        SoftshardsError: the file is something else, or belongs to a different label set.
    """
    results = open_results(out)
    if not isinstance(results, EvaluationResults):
        return EvaluationResults(
            label_set=HeldOutSet.of(labels, digests=labels.digests),
            teacher=measure_teacher(labels),
            models=[],
            tasks=results.tasks,
            answers=results.answers,
        )
    if results.label_set.digests != labels.digests:
        raise SoftshardsError(
            "the results belong to a different label set",
            path=out,
            hint="give another --out: numbers of two held-out sets do not compare",
        )
    return results
