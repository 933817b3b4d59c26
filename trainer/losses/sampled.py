"""Cross-entropy to labels that were drawn from the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.buckets import check_same_ids


def sampled_cross_entropy(counts: Tensor, logp: Tensor) -> Tensor:
    """-sum_j (c_j / N) log p_j over the drawn ids, N = sum_j c_j, per position.

    counts [n, k] says how often each id was drawn from the teacher's whole distribution (integer,
    or importance weights in floating point; 0 for padding), logp [n, k] is from
    `linear_label_logprobs` over those ids. Returns [n] in nats, in logp's dtype, at least float32;
    0 where nothing was drawn.

    Unbiased: over the draws its gradient averages to that of the dense forward KL, p - q (random
    sampling knowledge distillation, arXiv 2503.16870). The value is a cross-entropy, not a KL: it
    has the teacher's entropy in it, which the draws do not tell.

    Raises ValueError for shapes that do not fit and for logp that is not floating point.
    """
    check_same_ids(counts, logp, "counts")
    if not logp.is_floating_point():
        raise ValueError("logp must be floating point")
    logp = logp.to(torch.promote_types(logp.dtype, torch.float32))
    counts = counts.to(logp.dtype)
    share = counts / counts.sum(1, keepdim=True).where(counts.any(1, keepdim=True), 1)
    return -(share * logp.masked_fill(counts == 0, 0)).sum(1)
