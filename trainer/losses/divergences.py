"""Divergences between teacher Q and student P over k + 1 buckets: k labeled ids and the tail.

Each function here takes the same four tensors of log-probabilities:

    teacher_logp [n, k] and teacher_log_tail [n], as decoded (see `renormalize_teacher`)
    logp [n, k] and log_rest [n], from `linear_label_logprobs` over the same ids

and returns one value per position, [n] in nats (`tvd`: in [0, 1]), in the student's dtype, at least
float32. Sums are over buckets, with 0 log 0 = 0: a bucket that is empty on both sides, such as a
padded id, adds neither value nor gradient. All raise ValueError for shapes that do not fit, for
dtypes that are not floating point, and for a mixing weight outside (0, 1).
"""

from __future__ import annotations

from torch import Tensor

from trainer.losses.buckets import bucketed, kl, mix


def forward_kl(
    teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor
) -> Tensor:
    """Return KL(Q || P) = sum Q log(Q / P), the default loss.

    Its gradient on the logits is p - q (Hinton et al., arXiv 1503.02531, at T = 1, with the tail as
    one class). A bucket with teacher mass but no student mass costs +inf, as the formula says (a
    tail where the student's ids cover its vocabulary: the two sides disagree about the vocabulary);
    its gradient stays finite. The value is a KL only if each teacher row sums to one: see
    `renormalize_teacher`.
    """
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(teacher, student)


def reverse_kl(
    teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor
) -> Tensor:
    """Return KL(P || Q) = sum P log(P / Q) (MiniLLM, arXiv 2306.08543).

    Student mass where the teacher has none costs +inf and has an infinite gradient, as the formula
    says. `skew_reverse_kl` and `jsd` stay finite there.
    """
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(student, teacher)


def jsd(
    teacher_logp: Tensor,
    teacher_log_tail: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    *,
    beta: float = 0.5,
) -> Tensor:
    """Return the generalized Jensen-Shannon divergence (GKD, arXiv 2306.13649, eq. 1).

        M = beta Q + (1 - beta) P;   beta KL(Q || M) + (1 - beta) KL(P || M)

    It never exceeds the entropy of (beta, 1 - beta), and is finite wherever the mass is. Divided by
    beta it tends to KL(Q || P) as beta goes to 0, divided by 1 - beta to KL(P || Q) as beta goes to
    1; it is itself 0 there. Some libraries return the KL at those two values.
    """
    _check_mixing("beta", beta, "use forward_kl", "use reverse_kl")
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    mixture = mix(teacher, student, beta)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def skew_kl(
    teacher_logp: Tensor,
    teacher_log_tail: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    *,
    alpha: float = 0.1,
) -> Tensor:
    """Return KL(Q || alpha Q + (1 - alpha) P) (DistiLLM, arXiv 2402.03898).

    It never exceeds -log(alpha), and is finite wherever the mass is.
    """
    _check_mixing("alpha", alpha, "use forward_kl", "there is nothing to learn")
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(teacher, mix(teacher, student, alpha))


def skew_reverse_kl(
    teacher_logp: Tensor,
    teacher_log_tail: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    *,
    alpha: float = 0.1,
) -> Tensor:
    """Return KL(P || alpha P + (1 - alpha) Q) (DistiLLM, arXiv 2402.03898).

    It never exceeds -log(alpha), and is finite wherever the mass is.
    """
    _check_mixing("alpha", alpha, "use reverse_kl", "there is nothing to learn")
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(student, mix(student, teacher, alpha))


def tvd(teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor) -> Tensor:
    """Return the total variation distance, sum |Q - P| / 2 (f-DISTILL, arXiv 2307.15190).

    The gradient at a bucket where both agree is taken as 0.
    """
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return (teacher.exp() - student.exp()).abs().sum(1) / 2


def _check_mixing(name: str, value: float, at_zero: str, at_one: str) -> None:
    if not 0 < value < 1:
        raise ValueError(
            f"{name} must be above 0 and below 1, got {value}: {at_zero} at 0, {at_one} at 1"
        )
