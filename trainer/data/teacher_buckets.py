"""What has to be done to stored labels before a loss may see them."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.buckets import check_buckets, with_tail


def renormalize_teacher(logp: Tensor, log_tail: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each row so that probabilities and tail sum to one again after storage rounding.

        logp - log Z, log_tail - log Z,   Z = sum_j exp(logp_j) + exp(log_tail)

    logp [n, k] and log_tail [n] as decoded (float16 on disk), -inf for padding or an empty tail.
    Returns the pair in nats, in the dtype of logp, at least float32. Meant for where labels are
    decoded, not for the step: the check reads the values back.

    Raises ValueError for shapes that do not fit, dtypes that are not floating point, and rows that
    hold no mass, NaN or +inf: nothing could make those a distribution.
    """
    check_buckets(logp, log_tail, "logp", "log_tail")
    dtype = torch.promote_types(logp.dtype, torch.float32)
    logp, log_tail = logp.to(dtype), log_tail.to(dtype)
    log_z = torch.logsumexp(with_tail(logp, log_tail), 1)
    bad = ~log_z.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} teacher rows have no mass, NaN or +inf, the first at "
            f"row {int(bad.nonzero()[0, 0])}: the labels are damaged or were decoded wrongly"
        )
    return logp - log_z[:, None], log_tail - log_z
