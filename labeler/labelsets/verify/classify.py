"""Find out what is wrong with a row's labels, from how they differ from the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labeler.labelsets.verify.differences import Differences
from schemas import Labels
from schemas.shift_check import SHIFTS
from schemas.topk_match import match

SHIFTED_SHARE = 0.1
"""A label is shifted if its distance at another position is at most this share of the distance at
its own."""
SHIFTED_DISTANCE = 0.02
"""Minimum distance at the label's own position before a shift is considered."""
TEACHER_DISTANCE = 0.05
"""Mean distance above which a dtype or a kernel does not explain the differences."""
LINEAR = 0.999
"""Squared correlation above which stored logprobs are the teacher's, scaled."""
SCALED = 0.02
"""Difference of the slope from 1 above which the scale is a temperature."""

FaultKind = Literal["shift", "temperature", "tail-lost", "tail", "token", "teacher", "values"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Positions of one row with the same fault.

    Attributes:
        kind: the fault.
        value: the shift in positions, the temperature, the lost mass in nats, or the mean
            `distance`.
        row: the row's name.
        positions: int64 [m], the wrong positions.
        span_kinds: kinds of the spans that they are in.
        row_labels: number of labels in the row.
        worst: largest difference of a logprob beyond rounding, in nats.
    """

    kind: FaultKind
    value: float
    row: str
    positions: NDArray[np.int64]
    span_kinds: frozenset[str]
    row_labels: int
    worst: float


def find_faults(
    row: str,
    positions: NDArray[np.int64],
    span_kinds: NDArray[np.str_],
    stored: Labels,
    reference: Labels,
    differences: Differences,
) -> Iterator[Fault]:
    """Yield the faults of a row; none if everything is within the tolerance.

    Args:
        row: the row's name.
        positions: int64 [n], positions of its labels.
        span_kinds: str [n], kinds of the spans that they are in.
        stored: the row's labels.
        reference: the teacher's labels at all positions but the first.
        differences: between the two, at `positions`.
    """
    wrong = differences.wrong_top | differences.wrong_token | differences.wrong_tail

    def fault(kind: FaultKind, value: float, where: NDArray[np.bool_]) -> Fault:
        return Fault(
            kind=kind,
            value=value,
            row=row,
            positions=positions[where],
            span_kinds=frozenset(span_kinds[where].tolist()),
            row_labels=len(positions),
            worst=float(differences.beyond_rounding[where].max()),
        )

    if not wrong.any():
        return
    shifts, here = _find_shifts(stored, reference, positions, wrong)
    for shift in SHIFTS:
        if (shifted := wrong & (shifts == shift)).any():
            yield fault("shift", shift, shifted)
    wrong &= shifts == 0
    if not wrong.any():
        return
    if not (wrong & differences.wrong_top).any():
        if (tails := wrong & differences.wrong_tail).any():
            yield fault("tail", 0.0, tails)
        if (tokens := wrong & differences.wrong_token).any():
            yield fault("token", 0.0, tokens)
        return
    mean_distance = float(here[wrong].mean())
    kind: FaultKind = "values"
    value = mean_distance
    if wrong.sum() > len(positions) / 2:
        if scaled := _find_scale(stored[wrong], reference[positions[wrong] - 1]):
            kind, value = scaled
        elif mean_distance > TEACHER_DISTANCE:
            kind = "teacher"
    yield fault(kind, value, wrong)


def _find_shifts(
    stored: Labels, reference: Labels, positions: NDArray[np.int64], wrong: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the shift [n] of each wrong label, 0 for none, and its distance at its position [n].

    A shift that explains most of a row's wrong labels explains all of them: near the row's ends
    they may belong to positions outside it.
    """
    found = np.zeros(len(positions), np.int64)
    here = np.zeros(len(positions))
    here[wrong] = distance(stored[wrong], reference[positions[wrong] - 1])
    least = np.where(wrong & (here > SHIFTED_DISTANCE), SHIFTED_SHARE * here, -1.0)
    for shift in SHIFTS:
        there = positions + shift - 1
        tried = np.flatnonzero((least >= 0) & (there >= 0) & (there < len(reference)))
        if tried.size:
            far = distance(stored[tried], reference[there[tried]])
            better = far < least[tried]
            found[tried[better]], least[tried[better]] = shift, far[better]
    for shift in SHIFTS:
        if (found == shift).sum() > wrong.sum() / 2:
            found[wrong] = shift
    return found, here


def distance(stored: Labels, exact: Labels) -> NDArray[np.float64]:
    """Return the distance between labels, float64 [n]: 0 if equal, 1 with nothing in common.

    It is the sum of |p - q| over the ids of both, as a share of their mass in both.
    """
    same = match(stored.topk_ids, exact.topk_ids)
    p, q = (np.exp(v.astype(np.float64)) for v in (stored.topk_logprobs, exact.topk_logprobs))
    apart = np.abs(p - same.values(q, 0.0)).sum(axis=1) + np.where(same.unmatched, q, 0).sum(axis=1)
    share: NDArray[np.float64] = apart / np.maximum(p.sum(axis=1) + q.sum(axis=1), 1e-12)
    return share


def _find_scale(
    stored: Labels, exact: Labels
) -> tuple[Literal["temperature", "tail-lost"], float] | None:
    """Return the temperature of the labels, or the tail mass they lost in nats; None for neither.

    softmax(z / T) has logprobs z / T + constant. Around the mean of each position, stored logprobs
    are therefore the teacher's times 1 / T.
    """
    same = match(stored.topk_ids, exact.topk_ids)
    truth = same.values(exact.topk_logprobs, np.nan)
    kept = same.found & np.isfinite(truth) & np.isfinite(stored.topk_logprobs)
    count = np.maximum(kept.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(kept, v, 0.0).astype(np.float64) for v in (truth, stored.topk_logprobs))
    offset = (y - x).sum(axis=1) / count[:, 0]
    x, y = (np.where(kept, v - v.sum(axis=1, keepdims=True) / count, 0.0) for v in (x, y))
    xx, xy, yy = (x * x).sum(), (x * y).sum(), (y * y).sum()
    mostly_same = kept.sum() > 0.95 * (stored.topk_logprobs > -np.inf).sum()
    if not mostly_same or xy <= 0 or xy * xy < LINEAR * xx * yy:
        return None
    if abs(xy / xx - 1) > SCALED:
        return "temperature", float(xx / xy)
    if (offset > 0).all() and float(offset.mean()) > SCALED:
        return "tail-lost", float(offset.mean())
    return None
