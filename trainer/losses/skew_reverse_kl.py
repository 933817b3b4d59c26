"""Skew reverse KL with tail."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.buckets import bucketed, check_share, kl, mix


def skew_reverse_kl(
    teacher_logp: Tensor,
    teacher_log_tail: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    *,
    alpha: float = 0.1,
) -> Tensor:
    """KL(P || alpha P + (1 - alpha) Q), teacher Q, student P (DistiLLM, arXiv 2402.03898).

    Over k ids plus the tail. Arguments as for `forward_kl`. Returns [n] in nats, in the student's
    dtype, at least float32; never more than -log(alpha), and finite whatever mass is where.

    Raises ValueError for alpha outside (0, 1), shapes that do not fit, dtypes not floating point.
    """
    check_share("alpha", alpha, "use reverse_kl", "there is nothing to learn")
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(student, mix(student, teacher, alpha))
