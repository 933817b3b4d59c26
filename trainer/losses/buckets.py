"""Log-probabilities over k + 1 buckets, k ids and a tail: the math that the losses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.data.teacher_buckets import check_buckets, with_tail


def bucketed(
    teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Return teacher and student, each [n, k + 1] with the tail last. An empty bucket is -inf.

    Both are in the student's dtype, at least float32. Arguments: see `trainer.losses.divergences`.

    Raises:
        ValueError: shapes do not fit, or a dtype is not floating point.
    """
    check_buckets(teacher_logp, teacher_log_tail, "teacher_logp", "teacher_log_tail")
    check_buckets(logp, log_rest, "logp", "log_rest")
    check_same_ids(teacher_logp, logp, "teacher_logp")
    dtype = torch.promote_types(logp.dtype, torch.float32)
    teacher = with_tail(teacher_logp.to(dtype), teacher_log_tail.to(dtype))
    return teacher, with_tail(logp.to(dtype), log_rest.to(dtype))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return sum_b p_b (log p_b - log q_b) of log-probabilities [n, b], with 0 log 0 = 0.

    The result is [n] in nats. A bucket where p has no mass adds neither value nor gradient, even if
    q has none either. Mass of p where q has none costs +inf, as the formula says.
    """
    mass = p.exp()
    # Filled before the product: 0 * -inf is NaN, in value and in gradient.
    empty = mass == 0
    return (mass * (p.masked_fill(empty, 0) - q.masked_fill(empty, 0))).sum(1)


def mix(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return log(share e^a + (1 - share) e^b), elementwise; -inf without gradient if both are."""
    empty = (a == -math.inf) & (b == -math.inf)
    a, b = a.masked_fill(empty, 0), b.masked_fill(empty, 0)
    mixed = torch.logaddexp(a + math.log(share), b + math.log1p(-share))
    return mixed.masked_fill(empty, -math.inf)


def check_same_ids(values: Tensor, logp: Tensor, name: str) -> None:
    """Refuse two sides that cannot be over the same ids.

    Raises:
        ValueError: they are not both [n, k].
    """
    if logp.dim() != 2 or values.shape != logp.shape:
        raise ValueError(
            f"{name} {tuple(values.shape)} and logp {tuple(logp.shape)} must both be [n, k], over "
            "the same ids"
        )
