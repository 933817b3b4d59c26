"""Measure models on a held-out label set, against the teacher that labeled it."""

from __future__ import annotations

import json
import math
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.arrow import SPAN_KINDS
from schemas.atomic import write_atomic
from schemas.fingerprint import weights_digest
from trainer.console import ProgressBar
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset
from trainer.evaluate.calibration_error import BINS, bin_sums, expected_calibration_error
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.teacher_facts import checkpoint_size, teacher_metrics, weight_bytes
from trainer.losses.objective import label_losses
from trainer.report.layout import ECE, number, percent, size, table, table_console
from trainer.student.student import Student, load_student, parameter_counts

RESULTS_VERSION = 2
PACK_TOKENS = 2048

Measured = list[tuple[Path, dict[str, Any]]]
"""Models by their paths, and what was measured."""


def evaluate(config: EvaluateConfig) -> int:
    """Measure every model that OUT does not have yet, and print all; return the exit code.

    Raises:
        SoftshardsError: as `measure_models`.
    """
    results, shown = measure_models(config)
    if config.json:
        sys.stdout.write(json.dumps(results, indent=1) + "\n")
    else:
        table_console().print(_table(shown, results["teacher"]))
    return 0


def measure_models(config: EvaluateConfig) -> tuple[dict[str, Any], Measured]:
    """Measure every model that OUT does not have yet, and write OUT.

    Returns:
        the content of OUT, and what it says of each of the models asked for, in their order.

    Raises:
        SoftshardsError: OUT is about another label set, or a model does not fit it.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    results = _open_results(config, labels)
    if config.teacher is not None:
        results["teacher"] |= checkpoint_size(config.teacher, labels)
        if not results["teacher"]["proved"]:
            scope = labels.manifest.identity.weights_scope
            console.print(
                f"warning: the label set's teacher is {scope}, not a digest of files: nothing "
                f"proves that {config.teacher} is it, but its tokenizer is the labels'"
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shown: Measured = []
    for path in config.model:
        digest = _digest(path)
        asked = {"weights": digest, "dtype": config.dtype, "vocab_map": config.vocab_map}
        known = [r for r in results["models"] if asked.items() <= r.items()]
        if known:
            console.print(f"{path}: reused")
            shown.append((path, known[0]))
            if str(path) not in known[0]["paths"]:
                known[0]["paths"].append(str(path))
            continue
        student = load_student(path, labels, map_vocab=config.vocab_map).eval().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
            metrics = measure(student, labels, device=device, pack_tokens=config.pack_tokens)
        extent = parameter_counts(student.model) | {"bytes": weight_bytes(path)}
        results["models"].append({"paths": [str(path)], **asked, **extent, **metrics})
        shown.append((path, results["models"][-1]))
        _write(config.out, results)
    _write(config.out, results)
    return results, shown


@torch.no_grad()
def measure(
    model: Any,
    labels: LabelSet,
    *,
    device: torch.device,
    pack_tokens: int | None = None,
    among: Accelerator | None = None,
) -> dict[str, Any]:
    """Sums over every label of a set, divided by their number.

    Args:
        model: a `Student`, or one that DDP or FSDP wrapped.
        among: the processes that share the packs; all have to call this. By default one alone.

    Returns:
        For "all" and each span kind present: labels, ce (nats), ppl, kl (nats, forward, bucketed),
        agreement (share of positions where student and teacher find the same token likeliest),
        ece (expected calibration error of the student's likeliest token against the actual one),
        and the teacher's own ce and ppl on the same tokens.
    """
    student = model if isinstance(model, Student) else model.module
    budget = pack_tokens or max(PACK_TOKENS, labels.manifest.identity.max_length)
    sums = torch.zeros(len(SPAN_KINDS), 5, dtype=torch.float64)
    bins = torch.zeros(len(SPAN_KINDS) * BINS, 3, dtype=torch.float64)
    rank, world = (among.process_index, among.num_processes) if among else (0, 1)
    packs = iter(LabelDataset(labels, pack_tokens=budget, window=1, vocab_map=student.vocab_map))
    with ProgressBar("measure", labels.labels, enabled=rank == 0) as progress:
        while group := list(islice(packs, world)):
            # Under FSDP every rank must run as often as the others: one without a pack of its own
            # runs the first, and does not count it.
            pack, counts = (group[rank], 1.0) if rank < len(group) else (group[0], 0.0)
            batch = collate(pack, attention=student.attention).to(device)
            output, (best, best_logp) = model(batch, with_likeliest=True)
            kl, ce = label_losses(output, batch)
            agrees = best == batch.topk_ids[:, 0]
            values = [torch.ones_like(ce), ce, kl, agrees, -batch.token_logprob]
            stacked = torch.stack([v.double() for v in values], 1).cpu()
            kinds = batch.kinds.cpu()
            sums.index_add_(0, kinds, stacked * counts)
            calibration = bin_sums(best_logp.exp(), best == batch.targets).cpu()
            at = kinds * BINS + calibration[:, 0].long()
            bins.index_add_(0, at, calibration[:, 1:] * counts)
            progress.advance(sum(pack.n_labels for pack in group))
    if among is not None:
        sums, bins = (among.reduce(x.to(device), "sum").cpu() for x in (sums, bins))
    bins = bins.view(len(SPAN_KINDS), BINS, 3)
    present = [index for index, row in enumerate(sums) if row[0] > 0]
    return {
        "all": _means(sums.sum(0), bins.sum(0)),
        "kinds": {SPAN_KINDS[index]: _means(sums[index], bins[index]) for index in present},
    }


def _means(sums: Tensor, bins: Tensor) -> dict[str, float]:
    count, ce, kl, agreement, teacher = sums.tolist()
    return {
        "labels": int(count),
        "ce": ce / count,
        "ppl": math.exp(min(ce / count, 700.0)),
        "kl": kl / count,
        "agreement": agreement / count,
        "ece": expected_calibration_error(bins),
        "teacher_ce": teacher / count,
        "teacher_ppl": math.exp(min(teacher / count, 700.0)),
    }


def _table(shown: Measured, teacher: dict[str, Any]) -> Table:
    found = table("held-out", "model", "ppl", "KL", "top-1", "ECE", "params", caption=ECE)
    ppl = number(teacher["ppl"], 2, at_least=teacher.get("lower_bound", False))
    found.add_row("teacher", ppl, *["–"] * 3, size(teacher.get("parameters"), ""))
    for path, model in shown:
        m = model["all"]
        cells = [
            number(m["ppl"], 2),
            number(m["kl"], 4),
            percent(m["agreement"]),
            percent(m["ece"]),
        ]
        found.add_row(escape(str(path)), *cells, size(model["parameters"], ""))
    return found


def _open_results(config: EvaluateConfig, labels: LabelSet) -> dict[str, Any]:
    digests = labels.digests
    if config.out.is_file():
        try:
            results: dict[str, Any] = json.loads(config.out.read_text(encoding="utf-8"))
            same, version = results["label_set"]["digests"] == digests, results["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise SoftshardsError("not results of `trainer evaluate`", path=config.out) from error
        if version != RESULTS_VERSION:
            raise SoftshardsError(
                f"the results are of version {version}, this softshards writes {RESULTS_VERSION}",
                path=config.out,
                hint="delete the file, or give another --out: the models are measured again",
            )
        if not same:
            raise SoftshardsError(
                "the results are about another label set",
                path=config.out,
                hint="give another --out: numbers of two held-out sets do not compare",
            )
        return results
    manifest = labels.manifest
    about = {
        "path": labels.place,
        "digests": digests,
        "identity": manifest.identity.model_dump(mode="json"),
        "provenance": manifest.provenance,
        "rows": labels.rows,
        "labels": labels.labels,
    }
    teacher = {"weights": manifest.identity.weights, **teacher_metrics(labels)}
    return {"version": RESULTS_VERSION, "label_set": about, "teacher": teacher, "models": []}


def _digest(path: Path) -> str:
    try:
        return weights_digest(path)
    except FileNotFoundError as error:
        raise SoftshardsError(
            "no model here: there are no weights", path=path, hint="give a checkpoint folder"
        ) from error


def _write(path: Path, results: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(results, indent=1) + "\n")
