"""How far apart two teachers are at the same positions, from the ids that both have stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.codec import Labels
from schemas.topk_match import match

Floats = NDArray[np.float64]
ENTRIES = 1 << 22
"""Labels (positions x k) worked on at a time: bounds memory at any k."""
LOWEST = -1e4
"""Stands for log 0, so that 0 log 0 is 0 and nothing is infinite."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Two label arrays compared, position by position; natural logarithms.

    Attributes:
        a_to_b: float64 [n], KL(A||B) over the outcomes that both name and one for all others.
        b_to_a: float64 [n], KL(B||A) over the same.
        same_first: bool [n], whether the likeliest id is the same.
        token_difference: float64 [n], |difference| of the actual token's logprob.
        common_mass: float64 [n], A's mass of the ids that both name: how much the KL can see.
    """

    a_to_b: Floats
    b_to_a: Floats
    same_first: NDArray[np.bool_]
    token_difference: Floats
    common_mass: Floats


def diverge(a: Labels, b: Labels) -> Divergence:
    """Compare two teachers' labels of the same positions.

    Merging outcomes never raises a KL, so these are lower bounds of the KL over the whole
    vocabulary, and equal to it where both store all of it.

    Args:
        a: n positions; b: the same n positions, with any k.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} positions are not the same ones")
    step = max(1, ENTRIES // max(1, a.topk_ids.shape[1] + b.topk_ids.shape[1]))
    a_to_b, b_to_a, mass = np.empty(len(a)), np.empty(len(a)), np.empty(len(a))
    for start in range(0, len(a), step):
        some = slice(start, start + step)
        a_to_b[some], b_to_a[some], mass[some] = _bucketed_kl(a[some], b[some])
    return Divergence(
        a_to_b=a_to_b,
        b_to_a=b_to_a,
        same_first=(a.topk_ids[:, :1] == b.topk_ids[:, :1]).all(axis=1),
        token_difference=np.abs(_logs(a.token_logprob) - _logs(b.token_logprob)),
        common_mass=mass,
    )


def _bucketed_kl(a: Labels, b: Labels) -> tuple[Floats, Floats, Floats]:
    """KL both ways [n], over the common ids and one outcome for the rest; A's mass of these ids."""
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
    """Log-probabilities [n, k + 1] that sum to one exactly, whatever storage has rounded."""
    with np.errstate(divide="ignore"):
        log_rest = np.maximum(np.log(rest), LOWEST)
    outcomes = np.concatenate([logs, log_rest[:, None]], axis=1)
    return outcomes - np.log(np.exp(outcomes).sum(axis=1, keepdims=True))


def _logs(values: NDArray[np.float32]) -> Floats:
    return np.maximum(values.astype(np.float64), LOWEST)
