"""Cross-entropy on the actual tokens."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(target_logp: Tensor) -> Tensor:
    """-target_logp [n], in nats, per position.

    target_logp [n] is the log-probability of the actual token at T = 1 from
    `linear_label_logprobs`; the dtype is kept. On a teacher's own generations this alone is
    sequence-level distillation (Kim and Rush, arXiv 1606.07947).

    Raises ValueError unless it is [n].
    """
    if target_logp.dim() != 1:
        raise ValueError(f"target_logp must be [n], got {tuple(target_logp.shape)}")
    return -target_logp
