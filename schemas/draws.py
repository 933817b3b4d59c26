"""Sampled labels: ids drawn from the teacher's full distribution, N a position.

Draws are systematic, as in the resampling of particle filters (Kitagawa 1996; Carpenter, Clifford
and Fearnhead 1999): one uniform number u a position, and the ids at (j + u) / N of the cumulative
distribution, j = 0 .. N - 1. An id is drawn N p times on average, as in N independent draws, so
cross-entropy to them is as unbiased (arXiv 2503.16870), but no count is further than 1 from N p.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.codec import PAD_ID, Labels

TINY = 1e-3
SLACK = 1e-2
"""What counts, and the tail's mass, may be off by in the arithmetic of engines and storage."""


def counted(drawn: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draws [n, N] in ascending order, to `sample_ids` and `sample_counts` [n, m] of `Labels`."""
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
    """Which labels [n] cannot have been drawn from their own distribution.

    Args:
        labels: with `sample_ids` and `sample_counts`.
        draws: N, a position.
        slack: relative error of the probabilities of the top-k, a number or [n, k].

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
    # How often each of the top-k was drawn: all (position, id) pairs are in ascending order.
    span = int(max(ids.max(initial=0), labels.topk_ids.max(initial=0))) + 1
    row = np.arange(n, dtype=np.int64)[:, None] * span
    keys, key_counts = (row + ids)[ids != PAD_ID], counts[ids != PAD_ID]
    wanted = row + labels.topk_ids
    at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    found = np.zeros(wanted.shape)
    if len(keys):
        found = np.where(keys[at] == wanted, key_counts[at], 0)
    # Draws are of real ids. The padding of a head may have had some of the tail, and all counts
    # then are larger by one factor, for which each leaves room.
    found[labels.topk_ids == PAD_ID] = 1
    expected = np.maximum(draws * np.exp(labels.topk_logprobs.astype(np.float64)), 1e-9)
    least = ((found - 1 - TINY) / (expected * (1 + slack))).max(axis=1, initial=1)
    tail = np.exp(labels.tail_logprob.astype(np.float64))
    most = (1 + SLACK) / np.maximum(1 - tail, 1e-9)
    most = np.minimum(
        most, ((found + 1 + TINY) / expected * (1 + slack)).min(axis=1, initial=np.inf)
    )
    return np.asarray(wrong | (least > most))
