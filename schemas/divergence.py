"""Divergence of two teachers at the same positions, from the ids that both have stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.codec import Labels
from schemas.topk_match import match

Floats = NDArray[np.float64]
BLOCK_ENTRIES = 1 << 22
"""Entries (positions x k) per block: bounds memory at any k."""
LOWEST = -1e4
"""Stand-in for log 0, so that 0 log 0 is 0 and nothing is infinite."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Two label arrays compared position by position; natural logarithms.

    Attributes:
        a_to_b: float64 [n], KL(A||B) over the ids that both store and one outcome for all others.
        b_to_a: float64 [n], KL(B||A) over the same outcomes.
        same_first: bool [n], true where both have the same most likely id.
        token_difference: float64 [n], absolute difference of the actual token's logprobs.
        common_mass: float64 [n], A's mass on the ids that both store.
    """

    a_to_b: Floats
    b_to_a: Floats
    same_first: NDArray[np.bool_]
    token_difference: Floats
    common_mass: Floats


def diverge(a: Labels, b: Labels) -> Divergence:
    """Compare two teachers' labels of the same positions.

    Merging outcomes never raises a KL. So these are lower bounds of the KL over the whole
    vocabulary, and equal to it where both store all ids.

    Args:
        a: labels of one teacher at n positions.
        b: labels of the other one at the same positions; k may differ.

    Raises:
        ValueError: the numbers of positions differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} positions cannot be compared")
    step = max(1, BLOCK_ENTRIES // max(1, a.topk_ids.shape[1] + b.topk_ids.shape[1]))
    a_to_b, b_to_a, mass = np.empty(len(a)), np.empty(len(a)), np.empty(len(a))
    for start in range(0, len(a), step):
        block = slice(start, start + step)
        a_to_b[block], b_to_a[block], mass[block] = _bucketed_kl(a[block], b[block])
    return Divergence(
        a_to_b=a_to_b,
        b_to_a=b_to_a,
        same_first=(a.topk_ids[:, :1] == b.topk_ids[:, :1]).all(axis=1),
        token_difference=np.abs(_logs(a.token_logprob) - _logs(b.token_logprob)),
        common_mass=mass,
    )


def _bucketed_kl(a: Labels, b: Labels) -> tuple[Floats, Floats, Floats]:
    """Return both KLs [n] over the common ids and one outcome for the rest, and A's common mass."""
    same = match(a.topk_ids, b.topk_ids)
    common, log_a, log_b_all = same.found, _logs(a.topk_logprobs), _logs(b.topk_logprobs)
    log_b = same.values(log_b_all, LOWEST)
    rest_a = np.exp(_logs(a.tail_logprob)) + np.where(common, 0.0, np.exp(log_a)).sum(axis=1)
    others = np.where(same.unmatched, np.exp(log_b_all), 0.0)
    rest_b = np.exp(_logs(b.tail_logprob)) + others.sum(axis=1)
    log_a = np.where(common, log_a, LOWEST)
    outcomes_a, outcomes_b = _distribution(log_a, rest_a), _distribution(log_b, rest_b)
    difference = outcomes_a - outcomes_b
    return (
        (np.exp(outcomes_a) * difference).sum(axis=1),
        -(np.exp(outcomes_b) * difference).sum(axis=1),
        np.exp(outcomes_a[:, :-1]).sum(axis=1),
    )


def _distribution(logs: Floats, rest: Floats) -> Floats:
    """Return log-probabilities [n, k + 1] that sum to one exactly, despite rounding in storage."""
    with np.errstate(divide="ignore"):
        log_rest = np.maximum(np.log(rest), LOWEST)
    outcomes: Floats = np.concatenate([logs, log_rest[:, None]], axis=1)
    log_total: Floats = np.log(np.exp(outcomes).sum(axis=1, keepdims=True))
    return outcomes - log_total


def _logs(values: NDArray[np.float32]) -> Floats:
    return np.maximum(values.astype(np.float64), LOWEST)
