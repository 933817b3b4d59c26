"""Distributions over buckets, in logs: k ids and a tail. An empty bucket is -inf."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bucketed(
    teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Teacher and student, each [n, k + 1] with the tail last.

    teacher_logp [n, k] and teacher_log_tail [n] as decoded (see `renormalize_teacher`), logp [n, k]
    and log_rest [n] from `linear_label_logprobs` over the same ids. Both come out in the student's
    dtype, at least float32.

    Raises ValueError for shapes that do not fit and for dtypes that are not floating point.
    """
    check_buckets(teacher_logp, teacher_log_tail, "teacher_logp", "teacher_log_tail")
    check_buckets(logp, log_rest, "logp", "log_rest")
    check_same_ids(teacher_logp, logp, "teacher_logp")
    dtype = torch.promote_types(logp.dtype, torch.float32)
    teacher = with_tail(teacher_logp.to(dtype), teacher_log_tail.to(dtype))
    return teacher, with_tail(logp.to(dtype), log_rest.to(dtype))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """sum_b p_b (log p_b - log q_b) of log-probabilities [n, b], with 0 log 0 = 0; [n] in nats.

    Nothing is owed for a bucket where p has no mass: neither value nor gradient, also where q has
    none either. Mass of p where q has none costs +inf, as the formula says.
    """
    mass = p.exp()
    # Filled before the product: 0 * -inf is NaN, in value and in gradient.
    empty = mass == 0
    return (mass * (p.masked_fill(empty, 0) - q.masked_fill(empty, 0))).sum(1)


def mix(a: Tensor, b: Tensor, share: float) -> Tensor:
    """log(share e^a + (1 - share) e^b), elementwise; -inf without gradient where both are."""
    empty = (a == -math.inf) & (b == -math.inf)
    a, b = a.masked_fill(empty, 0), b.masked_fill(empty, 0)
    mixed = torch.logaddexp(a + math.log(share), b + math.log1p(-share))
    return mixed.masked_fill(empty, -math.inf)


def with_tail(logp: Tensor, log_tail: Tensor) -> Tensor:
    """[n, k] and [n] as [n, k + 1]."""
    return torch.cat([logp, log_tail[:, None]], 1)


def check_share(name: str, value: float, at_zero: str, at_one: str) -> None:
    """Refuse a mixture's share that is not strictly between 0 and 1 (ValueError)."""
    if not 0 < value < 1:
        raise ValueError(
            f"{name} must be above 0 and below 1, got {value}: {at_zero} at 0, {at_one} at 1"
        )


def check_buckets(logp: Tensor, log_tail: Tensor, name: str, tail_name: str) -> None:
    """Refuse what is not [n, k] and [n] of floating point numbers (ValueError)."""
    if logp.dim() != 2 or log_tail.shape != logp.shape[:1]:
        raise ValueError(
            f"need {name} [n, k] and {tail_name} [n], got {tuple(logp.shape)} and "
            f"{tuple(log_tail.shape)}"
        )
    if not (logp.is_floating_point() and log_tail.is_floating_point()):
        raise ValueError(f"{name} and {tail_name} must be floating point")


def check_same_ids(values: Tensor, logp: Tensor, name: str) -> None:
    """Refuse two sides that cannot be over the same ids (ValueError)."""
    if logp.dim() != 2 or values.shape != logp.shape:
        raise ValueError(
            f"{name} {tuple(values.shape)} and logp {tuple(logp.shape)} must both be [n, k], over "
            "the same ids"
        )
