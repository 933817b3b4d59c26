"""Teacher labels as distributions over k + 1 buckets: the k labeled ids, and the tail last."""

from __future__ import annotations

import torch
from torch import Tensor


def renormalize_teacher(logp: Tensor, log_tail: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each row so that probabilities and tail sum to one again after storage rounding.

        logp - log Z, log_tail - log Z,   Z = sum_j exp(logp_j) + exp(log_tail)

    Call it where labels are decoded, not in the step: the check reads values back from the device.

    Args:
        logp: [n, k] as decoded (float16 on disk), -inf for padding.
        log_tail: [n] as decoded, -inf for an empty tail.

    Returns:
        The pair in nats, in the dtype of logp, at least float32.

    Raises:
        ValueError: shapes do not fit, a dtype is not floating point, or a row holds no mass, NaN or
            +inf and so cannot become a distribution.
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


def with_tail(logp: Tensor, log_tail: Tensor) -> Tensor:
    """Return [n, k] and [n] as [n, k + 1]."""
    return torch.cat([logp, log_tail[:, None]], 1)


def check_buckets(logp: Tensor, log_tail: Tensor, name: str, tail_name: str) -> None:
    """Check that log-probabilities are [n, k] and [n], of floating point numbers.

    Raises:
        ValueError: they are not; the message has both names.
    """
    if logp.dim() != 2 or log_tail.shape != logp.shape[:1]:
        raise ValueError(
            f"need {name} [n, k] and {tail_name} [n], got {tuple(logp.shape)} and "
            f"{tuple(log_tail.shape)}"
        )
    if not (logp.is_floating_point() and log_tail.is_floating_point()):
        raise ValueError(f"{name} and {tail_name} must be floating point")
