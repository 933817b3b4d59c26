"""Where student and teacher find the same token likeliest."""

from __future__ import annotations

from typing import Any

from torch import Tensor

CHUNK = 256
"""Positions whose full logits are in memory at once."""


def agreement(
    head: Any, hidden: Tensor, logp: Tensor, log_rest: Tensor, topk_ids: Tensor, vocab: int
) -> Tensor:
    """Bool [n]: the student's likeliest token is the teacher's.

    Most positions are decided by the labels alone: another labeled id is likelier, or the
    teacher's choice has more mass than all unlabeled ids together. Only the rest needs logits.

    Args:
        head: the student's head. hidden: [n, d], what it predicts from.
        logp: [n, k], the student's of the teacher's `topk_ids`, likeliest first. log_rest: [n].
        vocab: number of real token ids; the head may be padded past them.
    """
    first = logp[:, 0]
    leads = first >= logp.max(1).values
    agrees = leads & (first >= log_rest)
    for rows in (leads & ~agrees).nonzero()[:, 0].split(CHUNK):
        # Softcap and scale change nothing here: they are monotonic.
        agrees[rows] = head(hidden[rows])[:, :vocab].argmax(1) == topk_ids[rows, 0]
    return agrees
