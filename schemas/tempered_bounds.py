"""The tails that labels can have at further temperatures, given their ids and tail at 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.codec import PAD_ID, Labels
from schemas.rounding_error import HALF_STEP, rounding

SLACK = 1e-2
"""Tolerance in nats, at T = 1, on top of rounding in storage."""
EXTREME = 16.0
"""Log-odds from which a float16 tail may be 0, or minus infinity."""


def impossible_tails(
    labels: Labels, temperatures: Sequence[float], *, k: int, vocab_size: int, codec: str
) -> NDArray[np.bool_]:
    """Return which tails no distribution with these ids and this tail at 1 has, bool [n, T].

    The mass outside the ids lies on m others, each at most as likely as the k-th. Its share at T
    is largest or smallest where it is spread evenly over them, and where it is as concentrated as
    it can be: x^(1/T) is concave for T > 1, convex for T < 1.

    Args:
        labels: labels with a column of `tempered_tails` per temperature.
        temperatures: these temperatures, without 1.
        k: ids of the top k; more may follow, which are less likely than others.
        vocab_size: number of real ids.
        codec: codec that the labels were stored in, for its rounding.
    """
    assert labels.tempered_tails is not None, "the caller looked"
    real = labels.topk_ids != PAD_ID
    logs = np.where(real, labels.topk_logprobs, -np.inf).astype(np.float64)
    tail = labels.tail_logprob.astype(np.float64)
    last = np.where(real, logs, 0.0)[:, :k].min(axis=1, initial=0.0)
    others = np.log(np.maximum(vocab_size - real.sum(axis=1), 1))
    error = rounding(logs, codec).max(axis=1, initial=0.0) * 3 + SLACK
    error += HALF_STEP * np.abs(np.where(np.isfinite(tail), tail, 0.0))
    found = np.zeros(labels.tempered_tails.shape, bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for column, temperature in enumerate(temperatures):
            inverse = 1 / temperature
            even = tail * inverse + (1 - inverse) * others
            dense = np.where(tail > last, tail + (inverse - 1) * last, tail * inverse)
            kept = np.logaddexp.reduce(logs * inverse, axis=1, initial=-np.inf)
            least, most = np.minimum(even, dense) - kept, np.maximum(even, dense) - kept
            stored = labels.tempered_tails[:, column].astype(np.float64)
            odds = stored - np.log(-np.expm1(stored))
            size = np.abs(np.where(np.isfinite(stored), stored, 0.0))
            slack = error * (1 + 2 * inverse) + 2 * HALF_STEP * (1 + size)
            high = (odds > most + slack) & (most < EXTREME)
            low = (odds < least - slack) & (least < EXTREME)
            low &= np.isfinite(stored) | (least > np.finfo(np.float16).min / 2)
            found[:, column] = np.isfinite(kept) & (high | low)
    return found
