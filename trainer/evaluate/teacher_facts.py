"""What is known of the teacher: from its labels, and from its checkpoint where there is one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from schemas import LabelSet, SoftshardsError
from schemas.fingerprint import weights_digest
from schemas.manifest import Identity
from trainer.student.tokenizer_check import check_tokenizer

UNPROVED = ("served", "stated")
"""Scopes of `weights` that are no digest of files: nothing proves which checkpoint it was."""


def teacher_metrics(labels: LabelSet) -> dict[str, Any]:
    """The teacher's cross-entropy (nats) and perplexity, from the labels alone.

    Returns:
        ce, ppl, and lower_bound: whether they are bounds. An imported set may not know the
        log-probability of an actual token outside the top-k, and then has the largest it can be
        (docs/interchange.md); `mean_nll` is null in such rows.
    """
    imported = "imported" in (labels.manifest.identity.rendering or {})
    total, count, unknown = 0.0, 0, False
    for group in labels.row_groups:
        table = labels.read_row_group(group, ["token_logprob", "mean_nll"])
        values = table["token_logprob"].combine_chunks().flatten().to_numpy().astype("float64")
        total, count = total - float(values.sum()), count + len(values)
        unknown = unknown or table["mean_nll"].null_count > 0
    ce = total / max(1, count)
    return {"ce": ce, "ppl": math.exp(min(ce, 700.0)), "lower_bound": imported and unknown}


def is_the_teacher(path: Path, identity: Identity) -> bool | None:
    """Whether a checkpoint's weights are those that made the labels; None where nothing tells.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    if identity.weights_scope in UNPROVED:
        return None
    return weights_digest(path, full=identity.weights_scope == "full") == identity.weights


def checkpoint_size(path: Path, labels: LabelSet) -> dict[str, Any]:
    """Parameters and bytes of the teacher's checkpoint, from its headers, and whether it is proved.

    Where the labels only state their teacher, its tokenizer at least has to be theirs.

    Raises:
        SoftshardsError: it is not the teacher that made the labels.
    """
    identity = labels.manifest.identity
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
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.student.student import parameter_counts

    with torch.device("meta"):  # shapes, no weights
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    counts = parameter_counts(model)
    return {"path": str(path), "bytes": weight_bytes(path), "proved": bool(proved), **counts}


def weight_bytes(path: Path) -> int:
    """Size of a checkpoint's weight files."""
    return sum(f.stat().st_size for f in [*path.glob("*.safetensors"), *path.glob("*.bin")])
