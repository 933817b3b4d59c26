"""Reverse KL with tail."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.buckets import bucketed, kl


def reverse_kl(
    teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor
) -> Tensor:
    """KL(student || teacher) over k ids plus the tail, per position (MiniLLM, arXiv 2306.08543).

        sum_j p_j (log p_j - log t_j) + r (log r - log tau),   0 log 0 = 0

    Arguments as for `forward_kl`. Returns [n] in nats, in the student's dtype, at least float32.
    Student mass where the teacher has none costs +inf and has an infinite gradient, as the formula
    says; padded ids, where the student has none either, cost nothing. `skew_reverse_kl` and `jsd`
    stay finite there.

    Raises ValueError for shapes that do not fit and for dtypes that are not floating point.
    """
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(student, teacher)
