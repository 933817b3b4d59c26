"""`trainer evaluate`: measure what the results lack, and compare. Imports torch only to measure."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.table import Table

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.hub_model import ModelSource, locate_model
from trainer.console import message_console, number_table, size, table_console
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.model_differences import differences_table, set_replicates
from trainer.evaluate.results import (
    ECE,
    PPL,
    QUALITY,
    EvaluationResults,
    Group,
    HeldOutSet,
    MeasuredModel,
    MeasuredTeacher,
    model_digest,
)
from trainer.evaluate.tasks.measure_tasks import measure_tasks
from trainer.evaluate.tasks.task_flags import TaskFlags
from trainer.evaluate.teacher_facts import add_checkpoint, measure_teacher, weight_bytes

ModelAt = tuple[Path, MeasuredModel]


def evaluate(config: EvaluateConfig, tasks: TaskFlags | None = None) -> int:
    """Measure every model that OUT lacks, and print all; return the exit code.

    Raises:
        SoftshardsError: as `measure_models` and `measure_tasks`.
    """
    results, models = measure_models(config)
    more = measure_tasks(config, tasks, results) if tasks and tasks.tasks else []
    if config.json:
        sys.stdout.write(results.to_json())
    else:
        console = table_console()
        console.print(_table(models, results.teacher))
        if any(model.replicates for _, model in models[1:]):
            console.print(differences_table(models))
        for table in more:
            console.print(table)
    return 0


def measure_models(config: EvaluateConfig) -> tuple[EvaluationResults, list[ModelAt]]:
    """Measure every model that OUT lacks, and write OUT.

    Returns:
        The content of OUT, and its entry for each model of `config`, in their order.

    Raises:
        SoftshardsError: OUT belongs to a different label set, or a model does not fit it.
    """
    console = message_console()

    def locate(model: Path) -> ModelSource:
        return locate_model(model, say=lambda line: console.print(line))

    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    results = _open_results(config.out, labels)
    if config.teacher is not None:
        results.teacher = add_checkpoint(results.teacher, locate(config.teacher), labels)
        if not results.teacher.proved:
            scope = labels.manifest.identity.weights_scope
            console.print(
                f"warning: the label set's teacher is {scope}, not a digest of files: nothing "
                f"proves that it is {config.teacher}, but its tokenizer is the labels'"
            )
    models: list[ModelAt] = []
    for model in config.model:
        source = locate(model)
        path, place = source.folder, str(source)
        digest = model_digest(path)
        entry = results.lookup(digest, dtype=config.dtype, vocab_map=config.vocab_map)
        if entry is not None:
            console.print(f"{place}: reused")
            if place not in entry.paths:
                entry.paths.append(place)
        else:
            entry = _measure(path, place, digest, labels, config)
            results.models.append(entry)
            results.write(config.out)
        models.append((model, entry))
    results.write(config.out)
    return results, models


def _measure(
    path: Path, place: str, digest: str, labels: LabelSet, config: EvaluateConfig
) -> MeasuredModel:
    """Measure a model.

    Args:
        path: its folder.
        place: the folder, or the repository that it comes from.
        digest: of its weights.
        labels: the held-out set.
        config: the settings.
    """
    import torch

    from trainer.evaluate.measure import SUMS, measure
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
        metrics = measure(
            student, labels, device=device, pack_tokens=config.pack_tokens, worst=worst
        )
    counted = count_parameters(student.model)
    entry = MeasuredModel(
        paths=[place],
        weights=digest,
        dtype=config.dtype,
        vocab_map=config.vocab_map,
        parameters=counted["parameters"],
        non_embedding=counted["non_embedding"],
        bytes=weight_bytes(path),
        all=metrics.all,
        by={"kind": [Group(value=k, metrics=m) for k, m in metrics.kinds.items()]},
        documents=metrics.documents,
        worst=worst.found(),
    )
    set_replicates(entry, dict(zip(SUMS, metrics.replicates.T)))
    return entry


def _table(models: list[ModelAt], teacher: MeasuredTeacher) -> Table:
    headings = [quality.heading for quality in QUALITY]
    table = number_table("held-out", "model", *headings, "params", caption=ECE)
    ppl = PPL.text(teacher.ppl, at_least=teacher.lower_bound)
    table.add_row("teacher", ppl, *["–"] * 3, size(teacher.parameters, ""))
    for path, model in models:
        cells = [quality.text(getattr(model.all, quality.name)) for quality in QUALITY]
        table.add_row(str(path), *cells, size(model.parameters, ""))
    return table


def _open_results(out: Path, labels: LabelSet) -> EvaluationResults:
    """Return the results in `out`, or new ones without models.

    Raises:
        SoftshardsError: the file is something else, or belongs to a different label set.
    """
    if not out.is_file():
        return EvaluationResults(
            label_set=HeldOutSet.of(labels, digests=labels.digests),
            teacher=measure_teacher(labels),
            models=[],
        )
    results = EvaluationResults.open(out)
    if results.label_set.digests != labels.digests:
        raise SoftshardsError(
            "the results belong to a different label set",
            path=out,
            hint="give another --out: numbers of two held-out sets do not compare",
        )
    return results
