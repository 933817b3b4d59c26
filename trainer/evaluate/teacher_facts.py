"""The teacher's figures: from its labels, and from its checkpoint if it is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas import LabelSet, LabelSetError, SoftshardsError
from schemas.fingerprint import weights_digest
from schemas.hub_model import ModelSource
from schemas.kept_positions import LABEL_WEIGHTS
from schemas.manifest import Identity
from trainer.data.window import (
    ROW_COLUMNS,
    Window,
    decode_window,
    drop_unlabeled,
    require_layout,
)
from trainer.evaluate.figures import COLUMNS
from trainer.evaluate.grouping import Grouping
from trainer.evaluate.results import MeasuredTeacher
from trainer.evaluate.tally import Measurements, Tally
from trainer.evaluate.token_bytes import token_bytes
from trainer.student.tokenizer_check import check_tokenizer

UNPROVED = ("served", "stated")
"""Scopes of `weights` that are no digest of files: nothing proves which checkpoint it was."""
TEACHER_FIGURES = ("ce", "ppl", "bits_per_byte", "accuracy", "ece")

T = TypeVar("T")


def measure_teacher(labels: LabelSet) -> MeasuredTeacher:
    """Return the teacher's figures, from the labels alone.

    Perplexity and bits per byte are bounds where an imported set lacks the log-probability of an
    actual token outside the top-k, and holds its largest possible value (docs/interchange.md);
    `mean_nll` is null in such rows.

    Raises:
        LabelSetError: the set holds no labels.
    """
    if labels.labels == 0:
        raise LabelSetError("the label set holds no labels", path=labels.place)
    identity = labels.manifest.identity
    is_imported = "imported" in (identity.rendering or {})
    sizes = token_bytes(labels.tokenizer_dir, identity.vocab_size)
    columns = [*ROW_COLUMNS, "mean_nll", *([LABEL_WEIGHTS] if identity.has_weights else [])]
    tally, has_unknown = Tally(Grouping()), False
    for group in labels.row_groups:
        table = drop_unlabeled(labels.read_row_group(group, columns))
        has_unknown = has_unknown or table["mean_nll"].null_count > 0
        if table.num_rows:
            require_layout(table, identity.vocab_size)
            window = decode_window(table, vocab_size=identity.vocab_size)
            rows = np.arange(table.num_rows)
            tally.add(window, rows, _teacher_measurements(window, sizes))
    whole = tally.whole
    found = whole.metrics
    return MeasuredTeacher(
        weights=identity.weights,
        documents=whole.documents,
        intervals=_only(whole.intervals()),
        replicates=_only(whole.replicates()),
        ce=found.ce,
        ppl=found.ppl,
        bits_per_byte=found.bits_per_byte,
        accuracy=found.accuracy,
        ece=found.ece,
        calibration=tally.calibration(),
        lower_bound=is_imported and has_unknown,
    )


def _teacher_measurements(window: Window, sizes: NDArray[np.int64] | None) -> Measurements:
    """Return what is added up for the labels of a window, with the teacher as the model."""
    labels, n_labels = window.labels, np.diff(window.label_offsets)
    owners = np.repeat(np.arange(len(n_labels)), n_labels)
    tokens = window.tokens[window.positions + window.token_offsets[owners]]
    ce = -labels.token_logprob.astype(np.float64)
    size = np.full(len(ce), np.nan) if sizes is None else sizes[tokens].astype(np.float64)
    known = {"ce": ce, "teacher_ce": ce, "bytes": size, "text_ce": np.where(size == 0, 0, ce)}
    nothing, one = np.zeros(len(ce)), np.ones(len(ce))
    known |= {"labels": one, "agreement": one, "overlap": one}
    return Measurements(
        values=np.stack([known.get(name, nothing) for name in COLUMNS], 1),
        confidence=np.exp(labels.topk_logprobs[:, 0].astype(np.float64)),
        correct=labels.topk_ids[:, 0] == tokens,
        kinds=window.kinds,
        owners=owners,
        weights=labels.label_weights,
    )


def _only(figures: dict[str, T]) -> dict[str, T]:
    """Return the figures that the teacher has of its own."""
    return {name: figures[name] for name in TEACHER_FIGURES if name in figures}


def is_the_teacher(path: Path, identity: Identity) -> bool | None:
    """Return True if a checkpoint's weights made the labels; None if nothing tells.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    if identity.weights_scope in UNPROVED:
        return None
    return weights_digest(path, full=identity.weights_scope == "full") == identity.weights


def add_checkpoint(
    teacher: MeasuredTeacher, source: ModelSource, labels: LabelSet
) -> MeasuredTeacher:
    """Add parameters and bytes of the teacher's checkpoint, read from its headers.

    If the labels only state their teacher, at least the tokenizer must be theirs.

    Raises:
        SoftshardsError: it is not the teacher that made the labels.
    """
    identity, path = labels.manifest.identity, source.folder
    try:
        proved = is_the_teacher(path, identity)
    except FileNotFoundError as error:
        raise SoftshardsError(str(error), hint="give the teacher's checkpoint folder") from error
    if proved is None:
        check_tokenizer(path, labels)
    if proved is False:
        raise SoftshardsError(
            "--teacher is not the checkpoint that made the labels: the digest of its weights is "
            f"not {identity.weights[:16]}...",
            path=path,
            hint="give the folder that the set was labeled from, or leave --teacher out",
        )
    if proved and teacher.parameters is not None and teacher.path == str(source):
        return teacher
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.student.load_model import read_config
    from trainer.student.student import count_parameters

    with torch.device("meta"):  # shapes, no weights
        model = AutoModelForCausalLM.from_config(read_config(path), trust_remote_code=False)
    checkpoint = {
        "path": str(source),
        "bytes": weight_bytes(path),
        "proved": bool(proved),
        **count_parameters(model),
    }
    return teacher.model_copy(update=checkpoint)


def weight_bytes(path: Path) -> int:
    """Return the size of a checkpoint's weight files."""
    return sum(f.stat().st_size for f in [*path.glob("*.safetensors"), *path.glob("*.bin")])
