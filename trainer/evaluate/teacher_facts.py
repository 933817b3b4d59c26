"""The teacher's figures: from its labels, and from its checkpoint if it is at hand."""

from __future__ import annotations

import math
from pathlib import Path

from schemas import LabelSet, SoftshardsError
from schemas.fingerprint import weights_digest
from schemas.hub_model import ModelSource
from schemas.manifest import Identity
from trainer.evaluate.results import MeasuredTeacher
from trainer.student.tokenizer_check import check_tokenizer

UNPROVED = ("served", "stated")
"""Scopes of `weights` that are no digest of files: nothing proves which checkpoint it was."""


def measure_teacher(labels: LabelSet) -> MeasuredTeacher:
    """Return the teacher's cross-entropy and perplexity, from the labels alone.

    They are bounds where an imported set lacks the log-probability of an actual token outside the
    top-k, and holds its largest possible value (docs/interchange.md); `mean_nll` is null in such
    rows.
    """
    identity = labels.manifest.identity
    is_imported = "imported" in (identity.rendering or {})
    total, count, has_unknown = 0.0, 0, False
    for group in labels.row_groups:
        table = labels.read_row_group(group, ["token_logprob", "mean_nll"])
        values = table["token_logprob"].combine_chunks().flatten().to_numpy().astype("float64")
        total, count = total - float(values.sum()), count + len(values)
        has_unknown = has_unknown or table["mean_nll"].null_count > 0
    ce = total / max(1, count)
    return MeasuredTeacher(
        weights=identity.weights,
        ce=ce,
        ppl=math.exp(min(ce, 700.0)),
        lower_bound=is_imported and has_unknown,
    )


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
