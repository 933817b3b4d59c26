"""The losses of other libraries that run on a CPU, as functions of hidden states and two heads.

All of them need a dense teacher: its hidden states and head, or its logits. None reads stored
labels. Their values are compared with ours in `tests/trainer/losses/test_published.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(hidden [n, d], weight [V, d], teacher_hidden [n, d], target [n]) to a scalar. The teacher's head
is the student's weight, detached: one table less in memory, for all alike."""


def trl_jsd(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, target: Tensor) -> Tensor:
    """Return TRL's GKD loss at beta 0 (forward KL) on materialized logits, plus cross-entropy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL says that these modules may move
        from trl.experimental.gkd import GKDTrainer
    logits = hidden @ weight.t()
    with torch.no_grad():
        teacher = teacher_hidden @ weight.t()
    kl = GKDTrainer.generalized_jsd_loss(logits[None], teacher[None], beta=0, reduction="sum")
    return kl / len(hidden) + torch.nn.functional.cross_entropy(logits, target)


def trl_top_k(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, target: Tensor) -> Tensor:
    """Return TRL's forward KL over 64 ids and the tail (SDFT) on materialized logits, plus CE.

    The closest published loss to ours: k + 1 buckets, but from two sets of full logits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss
    logits = hidden @ weight.t()
    with torch.no_grad():
        teacher = teacher_hidden @ weight.t()
    kl = compute_topk_self_distillation_loss(
        logits, teacher, distillation_topk=64, distillation_alpha=0.0, distillation_add_tail=True
    )
    return kl.mean() + torch.nn.functional.cross_entropy(logits, target)


def liger_jsd(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, target: Tensor) -> Tensor:
    """Return Liger's fused linear JSD at beta 0 (forward KL), plus CE, 1024 tokens at a time.

    Uncompiled: torch.compile would make it faster and take longer than the whole benchmark.
    """
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0, weight_soft_loss=1.0, beta=0.0, compiled=False, chunk_size=1024
    )
    total: Tensor = loss(hidden, weight, teacher_hidden, weight.detach(), target)
    return total


PEERS: dict[str, Loss] = {
    "trl_jsd": trl_jsd,
    "trl_top_k_tail": trl_top_k,
    "liger_fused_jsd": liger_jsd,
}
