"""Cross-entropies: on the actual tokens, and on ids drawn from the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.buckets import check_same_ids


def cross_entropy(target_logp: Tensor) -> Tensor:
    """Return -target_logp, [n] in nats; the dtype is kept.

    On a teacher's own generations this alone is sequence-level distillation (Kim and Rush, arXiv
    1606.07947).

    Args:
        target_logp: [n], log-probability of the actual token at T = 1, from
            `linear_label_logprobs`.

    Raises:
        ValueError: target_logp is not [n].
    """
    if target_logp.dim() != 1:
        raise ValueError(f"target_logp must be [n], got {tuple(target_logp.shape)}")
    return -target_logp


def sampled_cross_entropy(counts: Tensor, logp: Tensor) -> Tensor:
    """Return -sum_j (c_j / N) log p_j over the drawn ids, N = sum_j c_j, per position.

    Unbiased: its gradient, averaged over draws, is that of the dense forward KL, p - q (random
    sampling knowledge distillation, arXiv 2503.16870). The value is a cross-entropy, not a KL: it
    includes the teacher's entropy, which the draws do not reveal.

    Args:
        counts: [n, k], times each id was drawn from the teacher's full distribution: integers, or
            importance weights in floating point; 0 for padding.
        logp: [n, k], from `linear_label_logprobs` over those ids.

    Returns:
        [n] in nats, in logp's dtype, at least float32; 0 where nothing was drawn.

    Raises:
        ValueError: shapes do not fit, or logp is not floating point.
    """
    check_same_ids(counts, logp, "counts")
    if not logp.is_floating_point():
        raise ValueError("logp must be floating point")
    logp = logp.to(torch.promote_types(logp.dtype, torch.float32))
    counts = counts.to(logp.dtype)
    share = counts / counts.sum(1, keepdim=True).where(counts.any(1, keepdim=True), 1)
    return -(share * logp.masked_fill(counts == 0, 0)).sum(1)
