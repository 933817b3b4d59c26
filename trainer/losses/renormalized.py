"""Forward KL over the top-k alone, both sides renormalized: the loss of most other tools."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.losses.buckets import check_same_ids, kl


def renormalized_kl(teacher_logp: Tensor, logp: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(t_T || p_T) over the labeled ids alone, per position (arXiv 1503.02531).

        t_T = softmax(teacher_logp / T),  p_T = softmax(logp / T),  both over the row's ids

    Within the ids, log-probabilities are logits up to a constant, so the values at T = 1 determine
    those at any T. T^2 keeps the size of gradients independent of T; it is in the value, once, and
    thus in the gradient.

    The student's mass outside the ids is unconstrained, and the conditional distribution is biased
    toward the teacher's top-k (arXiv 2503.16870 measures the effect on calibration).

    Args:
        teacher_logp: [n, k] as decoded, -inf for padding.
        logp: [n, k], from `linear_label_logprobs` at temperature 1.
        temperature: T above.

    Returns:
        [n] in nats, in the student's dtype, at least float32. A row of padding alone costs 0.

    Raises:
        ValueError: T is not positive, shapes do not fit, or a dtype is not floating point.
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
