"""Label losses as pure functions on the k + 1 numbers a position that `trainer.ops` produces.

Buckets: the k labeled ids one by one, and everything else as one. A divergence between bucketed
distributions never exceeds the dense one (log-sum inequality) and equals it when the ids cover the
vocabulary or all but one id.

Temperature: none of these takes one. The tail was stored at T = 1, and what it would be at another
T depends on how it is spread over ids that were not stored: it is undefined, not approximate.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward_kl_with_tail(
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
    `renormalise_teacher`.

    Raises ValueError for shapes that do not fit and for dtypes that are not floating point.
    """
    _check_buckets(teacher_logp, teacher_log_tail, "teacher_logp", "teacher_log_tail")
    _check_buckets(logp, log_rest, "logp", "log_rest")
    if teacher_logp.shape != logp.shape:
        raise ValueError(
            f"teacher_logp {tuple(teacher_logp.shape)} and logp {tuple(logp.shape)} differ: "
            "both must be over the same ids"
        )
    dtype = torch.promote_types(logp.dtype, torch.float32)
    teacher = _with_tail(teacher_logp.to(dtype), teacher_log_tail.to(dtype))
    student = _with_tail(logp.to(dtype), log_rest.to(dtype))
    mass = teacher.exp()
    # Filled before the product: 0 * -inf is NaN, in value and in gradient.
    empty = mass == 0
    gap = teacher.masked_fill(empty, 0) - student.masked_fill(empty, 0)
    return (mass * gap).sum(1)


def renormalise_teacher(logp: Tensor, log_tail: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each row so that probabilities and tail sum to one again after storage rounding.

        logp - log Z, log_tail - log Z,   Z = sum_j exp(logp_j) + exp(log_tail)

    logp [n, k] and log_tail [n] as decoded (float16 on disk), -inf for padding or an empty tail.
    Returns the pair in nats, in the dtype of logp, at least float32. Meant for where labels are
    decoded, not for the step: the check reads the values back.

    Raises ValueError for shapes that do not fit, dtypes that are not floating point, and rows that
    hold no mass, NaN or +inf: nothing could make those a distribution.
    """
    _check_buckets(logp, log_tail, "logp", "log_tail")
    dtype = torch.promote_types(logp.dtype, torch.float32)
    logp, log_tail = logp.to(dtype), log_tail.to(dtype)
    log_z = torch.logsumexp(_with_tail(logp, log_tail), 1)
    bad = ~log_z.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} teacher rows have no mass, NaN or +inf, the first at "
            f"row {int(bad.nonzero()[0, 0])}: the labels are damaged or were decoded wrongly"
        )
    return logp - log_z[:, None], log_tail - log_z


def cross_entropy(target_logp: Tensor) -> Tensor:
    """Cross-entropy on the actual token, per position: -target_logp [n], in nats.

    target_logp [n] is the log-probability at T = 1 from `linear_label_logprobs`; the dtype is kept.
    Raises ValueError unless it is [n].
    """
    if target_logp.dim() != 1:
        raise ValueError(f"target_logp must be [n], got {tuple(target_logp.shape)}")
    return -target_logp


def _with_tail(logp: Tensor, log_tail: Tensor) -> Tensor:
    return torch.cat([logp, log_tail[:, None]], 1)


def _check_buckets(logp: Tensor, log_tail: Tensor, name: str, tail_name: str) -> None:
    if logp.dim() != 2 or log_tail.shape != logp.shape[:1]:
        raise ValueError(
            f"need {name} [n, k] and {tail_name} [n], got {tuple(logp.shape)} and "
            f"{tuple(log_tail.shape)}"
        )
    if not (logp.is_floating_point() and log_tail.is_floating_point()):
        raise ValueError(f"{name} and {tail_name} must be floating point")
