"""Which token the student finds likeliest at each label, and how likely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Positions whose full logits are in memory at once."""


def likeliest(
    head: Any, hidden: Tensor, ids: Tensor, logp: Tensor, log_rest: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    """The student's likeliest token, int64 [n], and its log-probability [n], exactly.

    Most positions are decided by the labels alone: a labeled id that has no less mass than all
    unlabeled ids together is the likeliest of all. Only the rest needs logits.

    Args:
        head: the student's `LabelHead`. hidden: [n, d], what it predicts from.
        ids: [n, k], padded with -1. logp: [n, k] and log_rest: [n], what the head said of them.
        settings: what the head was told then (`valid_vocab`, `scale`, `softcap`, ...).
    """
    best_logp, column = logp.max(1)
    best = ids.gather(1, column[:, None])[:, 0]
    for rows in (best_logp < log_rest).nonzero()[:, 0].split(CHUNK):
        with torch.autocast(hidden.device.type, enabled=False):  # in bfloat16 many logits tie
            logits = head(hidden[rows].to(head.weight.dtype))
        # Softcap and scale are monotonic: they change no order.
        found = logits[:, : settings["valid_vocab"]].argmax(1)
        best[rows] = found
        best_logp[rows] = head(hidden[rows], found[:, None], None, **settings)[0][:, 0]
    return best, best_logp
