"""Differences between stored labels and the reference engine's, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas import PAD_ID, Labels, rounding
from schemas.rounding_error import HALF_STEP
from schemas.topk_match import match
from schemas.version import COMPACT_1, PLAIN_1

TAIL_SLACK = 1e-4
"""Mass by which a tail may differ beyond the tolerance: 1 - sum of float32 terms is not exact."""

Floats = NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences between stored labels and the reference's, at n positions.

    Attributes:
        logprob: float64 [n], largest difference of a logprob in nats, over the stored ids and the
            actual token.
        beyond_rounding: the same, minus the rounding of storage.
        tail: float64 [n], difference of the tail's mass.
        other_ids: int64 [n], number of stored ids that are missing from the reference's top-k,
            except ties.
        wrong_top, wrong_token, wrong_tail: bool [n], positions outside the tolerance.
    """

    logprob: NDArray[np.float64]
    beyond_rounding: NDArray[np.float64]
    tail: NDArray[np.float64]
    other_ids: NDArray[np.int64]
    wrong_top: NDArray[np.bool_]
    wrong_token: NDArray[np.bool_]
    wrong_tail: NDArray[np.bool_]


def compare_labels(
    stored: Labels, exact: Labels, *, tolerance: float, codec: str = PLAIN_1
) -> Differences:
    """Compare stored labels with the reference's at the same positions.

    The stored list may be shorter (cut, or limited by a server), and ties may be in another order.

    Args:
        stored: labels of n positions.
        exact: labels of the same positions by the reference engine.
        tolerance: largest difference of a logprob that counts as equal, in nats, on top of the
            rounding of storage.
        codec: the codec that the labels are stored in.
    """
    same = match(stored.topk_ids, exact.topk_ids)
    truth = same.values(exact.topk_logprobs, np.nan)
    slack = rounding(truth, codec)
    if codec == COMPACT_1 and slack.size:
        slack[:, 0] *= 3  # the codec may move the most likely id up by one more step
    top = _difference(stored.topk_logprobs, truth)
    token = _difference(stored.token_logprob, exact.token_logprob)
    token_beyond = token - HALF_STEP * np.abs(_finite(exact.token_logprob))
    top_beyond = (top - slack).max(axis=1, initial=0.0)
    last = _finite(exact.topk_logprobs[:, -1:])
    tied = stored.topk_logprobs <= last + tolerance + rounding(last, codec)
    other = (~same.found & ~tied & (stored.topk_ids != PAD_ID)).sum(axis=1)
    exact_tail = np.exp(exact.tail_logprob.astype(np.float64))
    exact_tail += np.where(same.unmatched, np.exp(exact.topk_logprobs), 0).sum(axis=1)
    exact_tail -= np.where(same.found, 0, np.exp(stored.topk_logprobs)).sum(axis=1)
    stored_tail = np.exp(stored.tail_logprob.astype(np.float64))
    tail = np.abs(stored_tail - exact_tail)
    relative = tolerance + HALF_STEP * np.abs(_finite(stored.tail_logprob))
    return Differences(
        logprob=np.maximum(top.max(axis=1, initial=0.0), token),
        beyond_rounding=np.maximum(np.maximum(top_beyond, token_beyond), 0.0),
        tail=tail,
        other_ids=other,
        wrong_top=(top_beyond > tolerance) | (other > 0),
        wrong_token=token_beyond > tolerance,
        wrong_tail=tail > relative * np.abs(exact_tail) + TAIL_SLACK,
    )


def _difference(stored: Floats, truth: Floats) -> NDArray[np.float64]:
    """Return |stored - truth| in nats; 0 where the truth is NaN or both are -inf."""
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = np.abs(stored.astype(np.float64) - truth)
    found[np.isnan(truth) | (np.isneginf(stored) & np.isneginf(truth))] = 0.0
    return found


def _finite(values: Floats) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, 0.0).astype(np.float64)
