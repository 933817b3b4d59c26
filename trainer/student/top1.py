"""The token that the student finds most likely at each label, and its log-probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from trainer.student.head_settings import HeadSettings
from trainer.student.label_head import LabelHead

if TYPE_CHECKING:
    from trainer.student.lora_head import LoraLabelHead

CHUNK = 256
"""Positions whose full logits are in memory at once."""


def find_top1(
    head: LabelHead | LoraLabelHead,
    hidden: Tensor,
    ids: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    **settings: Unpack[HeadSettings],
) -> tuple[Tensor, Tensor]:
    """Return the student's most likely token, int64 [n], and its log-probability [n], exactly.

    Most positions are decided by the labels alone: a labeled id that has no less mass than all
    unlabeled ids together is the most likely of all. Only the others need logits.

    Args:
        head: the student's label head.
        hidden: [n, d], its input.
        ids: [n, k], padded with -1.
        logp: [n, k], the head's output for these ids.
        log_rest: [n], the head's output for all other ids.
        settings: those that gave `logp` and `log_rest`.
    """
    best_logp, column = logp.max(1)
    best = ids.gather(1, column[:, None])[:, 0]
    for rows in torch.split((best_logp < log_rest).nonzero()[:, 0], CHUNK):
        with torch.autocast(hidden.device.type, enabled=False):  # in bfloat16 many logits tie
            logits = head(hidden[rows].to(head.weight.dtype))
        # Softcap and scale are monotonic: they change no order.
        found = logits[:, : settings["valid_vocab"]].argmax(1)
        best[rows] = found
        best_logp[rows] = head(hidden[rows], found[:, None], None, **settings)[0][:, 0]
    return best, best_logp
