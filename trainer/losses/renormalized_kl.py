"""Forward KL over the top k alone, both sides renormalized: what most other tools do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.losses.buckets import check_same_ids, kl

WARNING = (
    "renormalized_kl leaves the student free outside the teacher's top k: it may put any mass "
    "there at no cost. It is for comparison with other tools; forward_kl has the tail"
)


def renormalized_kl(teacher_logp: Tensor, logp: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(t_T || p_T) over the labeled ids alone, per position (arXiv 1503.02531).

        t_T = softmax(teacher_logp / T),  p_T = softmax(logp / T),  both over the row's ids

    teacher_logp [n, k] as decoded, -inf for padding; logp [n, k] from `linear_label_logprobs` at
    *its* temperature 1: within the ids log-probabilities are logits but for a constant, so any T is
    had from them here. T^2 keeps gradients of one size over T; it is in the value, once, and thus
    in the gradient. Returns [n] in nats, in the student's dtype, at least float32. A row of padding
    alone costs 0.

    The student's mass outside the ids is unconstrained, and the conditional distribution is biased
    toward the teacher's top k (arXiv 2503.16870 measures what that does to calibration).

    Raises ValueError for T that is not positive, shapes that do not fit, dtypes not floating point.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    check_same_ids(teacher_logp, logp, "teacher_logp")
    if not (teacher_logp.is_floating_point() and logp.is_floating_point()):
        raise ValueError("teacher_logp and logp must be floating point")
    dtype = torch.promote_types(logp.dtype, torch.float32)
    no_ids = (teacher_logp == -math.inf).all(1, keepdim=True)
    teacher, student = (
        (x.to(dtype) / temperature).masked_fill(no_ids, 0).log_softmax(1)
        for x in (teacher_logp, logp)
    )
    return temperature**2 * kl(teacher, student)
