"""Total variation distance with tail."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.buckets import bucketed


def tvd(teacher_logp: Tensor, teacher_log_tail: Tensor, logp: Tensor, log_rest: Tensor) -> Tensor:
    """Half the sum over buckets of |teacher - student|, per position (f-DISTILL, arXiv 2307.15190).

        (sum_j |t_j - p_j| + |tau - r|) / 2

    Arguments as for `forward_kl`. Returns [n] in [0, 1], in the student's dtype, at least float32.
    The gradient at a bucket where both agree is taken as 0.

    Raises ValueError for shapes that do not fit and for dtypes that are not floating point.
    """
    teacher, student = bucketed(teacher_logp, teacher_log_tail, logp, log_rest)
    return (teacher.exp() - student.exp()).abs().sum(1) / 2
