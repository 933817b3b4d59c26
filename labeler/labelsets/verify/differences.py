"""Stored labels beside the reference's, position by position: what is outside the tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas import PAD_ID, Labels, rounding
from schemas.rounding_error import HALF_STEP
from schemas.topk_match import match
from schemas.version import COMPACT_1, PLAIN_1

TAIL_SLACK = 1e-4
"""Mass by which a tail may differ beside the tolerance: 1 - sum of float32 terms is no better."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Stored labels beside the reference's, at n positions.

    Attributes:
        difference: float64 [n], the largest difference of a logprob in nats, of the ids stored and
            of the actual token.
        beyond: the same, less the rounding of storage.
        tail: float64 [n], difference of the tail's mass.
        other_ids: int64 [n], ids stored that the reference's top-k has not, ties apart.
        top_off, token_off, tail_off: bool [n], what is outside the tolerance.
    """

    difference: NDArray[np.float64]
    beyond: NDArray[np.float64]
    tail: NDArray[np.float64]
    other_ids: NDArray[np.int64]
    top_off: NDArray[np.bool_]
    token_off: NDArray[np.bool_]
    tail_off: NDArray[np.bool_]


def compare(stored: Labels, exact: Labels, *, tolerance: float, codec: str = PLAIN_1) -> Compared:
    """Compare stored labels with the reference's of the same positions.

    The stored list may be shorter (cut, or limited by a server) and ties may be in another order.

    Args:
        stored: n positions; exact: the same ones, of the reference engine.
        tolerance: largest difference of a logprob in nats beside the rounding of storage.
        codec: what the labels are stored in.
    """
    same = match(stored.topk_ids, exact.topk_ids)
    truth = same.values(exact.topk_logprobs, np.nan)
    slack = rounding(truth, codec)
    if codec == COMPACT_1 and slack.size:
        slack[:, 0] *= 3  # the likeliest id may be moved up one step more
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
    return Compared(
        difference=np.maximum(top.max(axis=1, initial=0.0), token),
        beyond=np.maximum(np.maximum(top_beyond, token_beyond), 0.0),
        tail=tail,
        other_ids=other,
        top_off=(top_beyond > tolerance) | (other > 0),
        token_off=token_beyond > tolerance,
        tail_off=tail > relative * np.abs(exact_tail) + TAIL_SLACK,
    )


def _difference(stored: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """|stored - truth| in nats; 0 where there is no truth, or both are -inf."""
    with np.errstate(invalid="ignore"):
        found = np.abs(stored.astype(np.float64) - truth)
    found[np.isnan(truth) | (np.isneginf(stored) & np.isneginf(truth))] = 0.0
    return found


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, 0.0).astype(np.float64)
