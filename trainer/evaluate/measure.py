"""Measure models on a held-out label set, against the teacher that labeled it."""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.accelerator import Accelerator
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.arrow import SPAN_KINDS
from schemas.hub_model import ModelSource, locate_model
from trainer.console import ProgressBar, message_console, number_table, size, table_console
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.evaluate.bootstrap import REPLICATES, document_counts
from trainer.evaluate.calibration_error import BINS, bin_sums, expected_calibration_error
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.model_differences import differences_table, set_replicates
from trainer.evaluate.results import (
    ECE,
    PPL,
    QUALITY,
    EvaluationResults,
    HeldOutSet,
    MeasuredModel,
    MeasuredTeacher,
    Metrics,
    model_digest,
)
from trainer.evaluate.teacher_facts import add_checkpoint, measure_teacher, weight_bytes
from trainer.losses.batch_loss import label_losses
from trainer.student.context_check import check_context, longest_row
from trainer.student.student import Student, count_parameters, load_student

PACK_TOKENS = 2048

SUMS = ("labels", "ce", "kl", "agreement", "teacher_ce", "acceptance")
"""What is added up over labels, in the order of columns."""

ModelAt = tuple[Path, MeasuredModel]


class HeldOutMetrics(NamedTuple):
    """Metrics over all labels, and for each kind of span that occurs.

    Attributes:
        documents: records that this process measured.
        replicates: float64 [REPLICATES, columns of sums], of a bootstrap over documents.
    """

    all: Metrics
    kinds: dict[str, Metrics]
    documents: int
    replicates: NDArray[np.float64]


def evaluate(config: EvaluateConfig) -> int:
    """Measure every model that OUT lacks, and print all; return the exit code.

    Raises:
        SoftshardsError: as `measure_models`.
    """
    results, models = measure_models(config)
    if config.json:
        sys.stdout.write(results.to_json())
    else:
        console = table_console()
        console.print(_table(models, results.teacher))
        if any(model.replicates for _, model in models[1:]):
            console.print(differences_table(models))
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
            student = load_student(path, labels, map_vocab=config.vocab_map).eval()
            warning = check_context(student, longest_row(labels, student))
            for note in (*student.notes, *([f"warning: {warning}"] if warning else [])):
                console.print(f"{place}: {note}")
            student.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
                metrics = measure(student, labels, device=device, pack_tokens=config.pack_tokens)
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
                kinds=metrics.kinds,
                documents=metrics.documents,
            )
            set_replicates(entry, dict(zip(SUMS, metrics.replicates.T)))
            results.models.append(entry)
            results.write(config.out)
        models.append((model, entry))
    results.write(config.out)
    return results, models


@torch.no_grad()
def measure(
    model: nn.Module,
    labels: LabelSet,
    *,
    device: torch.device,
    pack_tokens: int | None = None,
    among: Accelerator | None = None,
) -> HeldOutMetrics:
    """Average the metrics over every label of a set.

    Args:
        model: a `Student`, or one that DDP or FSDP wrapped.
        labels: the held-out set.
        device: where the model is.
        pack_tokens: tokens run at once.
        among: the processes that share the packs; all must call this. None: this process alone.
    """
    student = model if isinstance(model, Student) else model.module
    assert isinstance(student, Student)
    budget = pack_tokens or max(PACK_TOKENS, labels.manifest.identity.max_length)
    sums = torch.zeros(len(SPAN_KINDS), len(SUMS), dtype=torch.float64)
    replicates = torch.zeros(REPLICATES, len(SUMS), dtype=torch.float64)
    bins = torch.zeros(len(SPAN_KINDS) * BINS, 3, dtype=torch.float64)
    documents: set[str] = set()
    rank, world = (among.process_index, among.num_processes) if among else (0, 1)
    packs = iter(
        LabelDataset(
            labels,
            pack_tokens=budget,
            padded=student.attention == "padded",
            window=1,
            vocab_map=student.vocab_map,
        )
    )
    with ProgressBar("measure", labels.labels, enabled=rank == 0) as progress:
        while group := list(islice(packs, world)):
            # Under FSDP every rank must run as often as the others: a rank without a pack of its
            # own runs the first, and does not count it.
            pack, counts = (group[rank], 1.0) if rank < len(group) else (group[0], 0.0)
            batch = collate(pack, attention=student.attention).to(device)
            output, (top1, top1_logp) = model(batch, with_top1=True)
            kl, ce = label_losses(output, batch)
            agrees = top1 == batch.topk_ids[:, 0]
            accepted = torch.minimum(batch.topk_logprobs, output.logp).exp().sum(1)
            values = [torch.ones_like(ce), ce, kl, agrees, -batch.token_logprob, accepted]
            stacked = torch.stack([v.double() for v in values], 1).cpu()
            if not counts:
                stacked.zero_()  # not multiplied: it may be infinite
            kinds = batch.kinds.cpu()
            sums.index_add_(0, kinds, stacked)
            by_row = stacked.new_zeros(len(pack.rows), len(SUMS))
            by_row.index_add_(0, batch.documents.cpu(), stacked)
            replicates += torch.from_numpy(document_counts(pack.documents)).T @ by_row
            documents.update(pack.documents if counts else ())
            calibration = bin_sums(top1_logp.exp(), top1 == batch.targets).cpu()
            at = kinds * BINS + calibration[:, 0].long()
            bins.index_add_(0, at, calibration[:, 1:] * counts)
            progress.advance(sum(pack.n_labels for pack in group))
    if among is not None:
        sums, bins, replicates = (
            among.reduce(x.to(device), "sum").cpu() for x in (sums, bins, replicates)
        )
    bins = bins.view(len(SPAN_KINDS), BINS, 3)
    present = [index for index, row in enumerate(sums) if row[0] > 0]
    return HeldOutMetrics(
        all=_means(sums.sum(0), bins.sum(0)),
        kinds={SPAN_KINDS[index]: _means(sums[index], bins[index]) for index in present},
        documents=len(documents),
        replicates=replicates.numpy(),
    )


def _means(sums: Tensor, bins: Tensor) -> Metrics:
    count, ce, kl, agreement, teacher, accepted = sums.tolist()
    return Metrics(
        labels=int(count),
        ce=ce / count,
        ppl=math.exp(min(ce / count, 700.0)),
        kl=kl / count,
        agreement=agreement / count,
        ece=expected_calibration_error(bins),
        teacher_ce=teacher / count,
        teacher_ppl=math.exp(min(teacher / count, 700.0)),
        acceptance=min(accepted / count, 1.0),
    )


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
