"""Sampled labels: ids drawn from the teacher's full distribution, N per position.

Draws are systematic, as in the resampling of particle filters (Kitagawa 1996; Carpenter, Clifford
and Fearnhead 1999): one uniform number u per position, and the ids at (j + u) / N of the cumulative
distribution, j = 0 .. N - 1. An id is drawn N p times on average, as in N independent draws, so
cross-entropy to the draws is as unbiased (arXiv 2503.16870), but no count differs from N p by more
than 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.codec import PAD_ID, Labels

COUNT_SLACK = 1e-3
"""Tolerance of N p, in draws, for rounding in engines and storage."""
TAIL_SLACK = 1e-2
"""Relative tolerance of the mass outside the tail, for the same reason."""


def count_draws(drawn: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Convert draws [n, N] in ascending order to `Labels.sample_ids` and `sample_counts` [n, m]."""
    n, draws = drawn.shape
    starts = np.ones((n, draws), bool)
    starts[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    place = starts.cumsum(axis=1) - 1
    longest = int(place.max(initial=-1)) + 1
    row = np.arange(n)[:, None]
    counts = np.bincount((row * longest + place).ravel(), minlength=n * longest)
    ids = np.full((n, longest), PAD_ID, np.int32)
    ids[np.broadcast_to(row, place.shape)[starts], place[starts]] = drawn[starts]
    return ids, counts.reshape(n, longest).astype(np.int32)


def misfits(labels: Labels, draws: int, slack: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask [n] of labels whose draws cannot come from their own distribution.

    Args:
        labels: labels with `sample_ids` and `sample_counts`.
        draws: N, the number of draws per position.
        slack: relative error of the top-k probabilities, a number or [n, k].

    Raises:
        ValueError: the labels hold no draws.
    """
    ids, counts = labels.sample_ids, labels.sample_counts
    if ids is None or counts is None:
        raise ValueError("the labels hold no draws")
    n = len(labels)
    wrong = counts.sum(axis=1) != draws
    wrong |= ((ids != PAD_ID) != (counts > 0)).any(axis=1)
    ascending = (ids[:, 1:] > ids[:, :-1]) | (ids[:, 1:] == PAD_ID)
    wrong |= ~ascending.all(axis=1)
    # Count the draws of each top-k id: all (position, id) pairs are in ascending order.
    span = int(max(ids.max(initial=0), labels.topk_ids.max(initial=0))) + 1
    row = np.arange(n, dtype=np.int64)[:, None] * span
    keys, key_counts = (row + ids)[ids != PAD_ID], counts[ids != PAD_ID]
    wanted = row + labels.topk_ids
    at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    found = np.zeros(wanted.shape)
    if len(keys):
        found = np.where(keys[at] == wanted, key_counts[at], 0)
    # Draws are real ids. The padding of a head may hold some of the tail. All counts are then
    # larger by one common factor, which each count bounds from both sides.
    found[labels.topk_ids == PAD_ID] = 1
    expected = np.maximum(draws * np.exp(labels.topk_logprobs.astype(np.float64)), 1e-9)
    least = ((found - 1 - COUNT_SLACK) / (expected * (1 + slack))).max(axis=1, initial=1)
    tail = np.exp(labels.tail_logprob.astype(np.float64))
    most = (1 + TAIL_SLACK) / np.maximum(1 - tail, 1e-9)
    most = np.minimum(
        most, ((found + 1 + COUNT_SLACK) / expected * (1 + slack)).min(axis=1, initial=np.inf)
    )
    return np.asarray(wrong | (least > most))
