"""Distances of the student's hidden states to the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.losses.loss_table import StateLoss


def state_distance(teacher: Tensor, student: Tensor, *, kind: StateLoss) -> Tensor:
    """Return the distance of states t and s at each position, [n].

        mse: |s - t|^2 / d            (TinyBERT, arXiv 1909.10351)
        cosine: 1 - s t / (|s| |t|)   (DistilBERT, arXiv 1910.01108)
        normalized_mse: |s - t|^2 / |t|^2, 1 for a student whose states are 0

    Args:
        teacher: [n, d].
        student: [n, d], projected to the teacher's width where it has another.
        kind: one of the above.

    Returns:
        [n] in the student's dtype, at least float32. A teacher's state of length 0 counts 0 in all
        but mse.

    Raises:
        ValueError: shapes do not fit.
    """
    if student.dim() != 2 or teacher.shape != student.shape:
        raise ValueError(
            f"teacher {tuple(teacher.shape)} and student {tuple(student.shape)} must both be [n, d]"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    t, s = teacher.to(dtype), student.to(dtype)
    if kind == "mse":
        return (s - t).square().mean(1)
    length = t.square().sum(1)
    known = length > 0
    if kind == "cosine":
        return (1 - torch.nn.functional.cosine_similarity(s, t, dim=1)).where(known, 0)
    return ((s - t).square().sum(1) / length.where(known, 1)).where(known, 0)
