"""Forward KL with tail: the default."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.buckets import bucketed, kl


def forward_kl(
    teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor
) -> Tensor:
    """KL(teacher || student) over k ids plus the tail, per position.

        sum_j t_j (log t_j - log p_j) + tau (log tau - log r),   0 log 0 = 0

    with t = exp(teacher_logp) [n, k], tau = exp(teacher_log_tail) [n], log p = logp [n, k] and
    log r = log_rest [n] from `linear_label_logprobs` over the same ids. Returns [n] in nats, in the
    student's dtype, at least float32. Gradients reach the student's numbers: -t_j and -tau, hence
    p - q on the logits (Hinton et al., arXiv 1503.02531, at T = 1, with the tail as one class).

    Nothing is owed for a bucket where the teacher has no mass: ids padded with teacher_logp = -inf,
    and a tail of -inf (k = V), add neither value nor gradient, also where the student's number is
    -inf too. A bucket with teacher mass but no student mass costs +inf, as the formula says (a tail
    where the student's ids cover its vocabulary: the two sides disagree about the vocabulary); its
    gradient stays finite. The value is a KL only if each teacher row sums to one: see
    `renormalize_teacher`.

    Raises ValueError for shapes that do not fit and for dtypes that are not floating point.
    """
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return kl(teacher, student)
