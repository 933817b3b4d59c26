"""Generalized Jensen-Shannon divergence with tail."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.buckets import bucketed, check_share, kl, mix


def jsd(
    teacher_logp: Tensor,
    teacher_log_tail: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    *,
    beta: float = 0.5,
) -> Tensor:
    """JSD(beta) of teacher Q and student P over k ids plus the tail (GKD, arXiv 2306.13649, eq. 1).

        M = beta Q + (1 - beta) P;   beta KL(Q || M) + (1 - beta) KL(P || M)

    Arguments as for `forward_kl`. Returns [n] in nats, in the student's dtype, at least float32;
    never more than the entropy of (beta, 1 - beta), and finite whatever mass is where.

    Divided by beta it tends to KL(Q || P) for beta to 0, divided by 1 - beta to KL(P || Q) for beta
    to 1; it is itself 0 there. Some libraries return the KL at those two values.

    Raises ValueError for beta outside (0, 1), shapes that do not fit, dtypes not floating point.
    """
    check_share("beta", beta, "use forward_kl", "use reverse_kl")
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    mixture = mix(teacher, student, beta)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
