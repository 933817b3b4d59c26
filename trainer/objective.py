"""What is minimised: forward KL with tail plus cross-entropy, a sum over labels."""

from __future__ import annotations

from torch import Tensor

from trainer.collate import Batch
from trainer.losses import cross_entropy, forward_kl

StudentOutput = tuple[Tensor, Tensor, Tensor]
"""logp [n, k] of the labeled ids, log_rest [n], target_logp [n]."""


def label_losses(output: StudentOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """KL to the teacher and cross-entropy on the actual token, each [n] in nats."""
    logp, log_rest, target_logp = output
    kl = forward_kl(batch.topk_logprobs, batch.tail_logprob, logp, log_rest)
    return kl, cross_entropy(target_logp)


def weighted_sum(kl: Tensor, ce: Tensor, kl_weight: float, ce_weight: float) -> Tensor:
    """The loss of a batch, summed over labels; divided by the step's label count it is the mean.

    A part of weight 0 is left out, not multiplied by 0: it is still reported, but neither costs a
    backward pass nor could its infinities reach the gradient.
    """
    parts = [w * part.sum() for w, part in ((kl_weight, kl), (ce_weight, ce)) if w]
    return sum(parts[1:], parts[0])
