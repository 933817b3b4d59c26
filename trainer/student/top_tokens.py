"""The tokens that the student finds most likely at each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Unpack

import torch
from torch import Tensor

from trainer.student.head_settings import HeadSettings
from trainer.student.label_head import LabelHead

if TYPE_CHECKING:
    from trainer.student.lora_head import LoraLabelHead

CHUNK = 256
"""Positions whose full logits are in memory at once."""


class TopTokens(NamedTuple):
    """The student's most likely tokens at n labels.

    Attributes:
        ids: int64 [n, k], the most likely first.
        logp: [n], log-probability of the first.
    """

    ids: Tensor
    logp: Tensor


def find_top_tokens(
    head: LabelHead | LoraLabelHead,
    hidden: Tensor,
    ids: Tensor,
    logp: Tensor,
    log_rest: Tensor,
    k: int,
    **settings: Unpack[HeadSettings],
) -> TopTokens:
    """Return the student's k most likely tokens at each label, exactly.

    Many positions are decided by the labels alone: a labeled id that has no less mass than all
    unlabeled ids together is more likely than any of them. Only the others need logits.

    Args:
        head: the student's label head.
        hidden: [n, d], its input.
        ids: [n, labeled ids], padded with -1.
        logp: [n, labeled ids], the head's output for these ids.
        log_rest: [n], the head's output for all other ids.
        k: tokens to return, or as many as the vocabulary has.
        settings: those that gave `logp` and `log_rest`.
    """
    k = min(k, settings["valid_vocab"])
    labeled = min(k, ids.shape[1])
    best_logp, columns = logp.topk(labeled, dim=1)
    best = ids.new_full((len(ids), k), -1)
    best[:, :labeled] = ids.gather(1, columns)
    top_logp = best_logp[:, 0].clone()
    undecided = best_logp[:, -1] < log_rest
    if labeled < k:
        undecided = torch.ones_like(undecided)
    for rows in torch.split(undecided.nonzero()[:, 0], CHUNK):
        with torch.autocast(hidden.device.type, enabled=False):  # in bfloat16 many logits tie
            logits = head(hidden[rows].to(head.weight.dtype))[:, : settings["valid_vocab"]]
        z = _transform(logits, settings)
        highest, best[rows] = z.topk(k, dim=1)
        top_logp[rows] = (highest[:, 0] - z.logsumexp(1)).to(top_logp.dtype)
    return TopTokens(best, top_logp)


def _transform(logits: Tensor, settings: HeadSettings) -> Tensor:
    """Return the logits as the head's op has them: at least float32, scaled and capped."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    z = z * settings.get("scale", 1.0)
    softcap = settings.get("softcap")
    return z if softcap is None else softcap * torch.tanh(z / softcap)
