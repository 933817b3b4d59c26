"""What is wrong with one row's labels, told from how they differ from the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.labelsets.verify.differences import Compared
from schemas import Labels
from schemas.shift_check import SHIFTS
from schemas.topk_match import match

NEARER = 0.1
"""A label is of another position where its distance there is at most this share of that here."""
FAR = 0.02
"""Distance below which it does not matter which of two positions a label is of."""
ANOTHER = 0.05
"""Mean distance above which differences are not those of a dtype or a kernel."""
LINE = 0.999
"""Squared correlation above which stored logprobs are the teacher's, scaled."""
SCALED = 0.02
"""Difference of the slope from 1 above which it is a temperature."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Positions of one row that have one thing wrong.

    Attributes:
        kind: `shift`, `temperature`, `tail-lost`, `tail`, `token`, `teacher` or `values`.
        value: the shift, the temperature, the mass given away in nats, or the mean `distance`.
        row: the row's name; positions: its positions that are wrong; kinds: of their spans.
        of: number of labels in the row.
        worst: largest difference of a logprob beyond rounding.
    """

    kind: str
    value: float
    row: str
    positions: NDArray[np.int64]
    kinds: frozenset[str]
    of: int
    worst: float


def judge(
    row: str,
    where: NDArray[np.int64],
    kinds: NDArray[Any],
    stored: Labels,
    reference: Labels,
    compared: Compared,
) -> list[Fault]:
    """The faults of a row; empty where all is within the tolerance.

    Args:
        row: its name; where: int64 [n], positions of its labels; kinds: of their spans.
        stored: its labels; reference: the teacher's, of every position but the first.
        compared: `differences.compare` of the two at `where`.
    """
    off = compared.top_off | compared.token_off | compared.tail_off

    def fault(kind: str, value: float, which: NDArray[np.bool_]) -> Fault:
        return Fault(
            kind=kind,
            value=value,
            row=row,
            positions=where[which],
            kinds=frozenset(kinds[which].tolist()),
            of=len(where),
            worst=float(compared.beyond[which].max()),
        )

    faults: list[Fault] = []
    if not off.any():
        return faults
    shifts, here = _shifts(stored, reference, where, off)
    for shift in SHIFTS:
        if (which := off & (shifts == shift)).any():
            faults.append(fault("shift", shift, which))
    off &= shifts == 0
    if not off.any():
        return faults
    if not (off & compared.top_off).any():
        for kind, which in (("tail", compared.tail_off), ("token", compared.token_off)):
            if (off & which).any():
                faults.append(fault(kind, 0.0, off & which))
        return faults
    kind, value = "values", float(here[off].mean())
    if off.sum() > len(where) / 2:
        kind, value = _scale(stored[off], reference[where[off] - 1]) or (
            "teacher" if value > ANOTHER else "values",
            value,
        )
    faults.append(fault(kind, value, off))
    return faults


def _shifts(
    stored: Labels, reference: Labels, where: NDArray[np.int64], off: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The shift of each label that is wrong here and right there [n], and the distance here [n].

    Where one shift explains most of a row's wrong labels it explains them all: at its ends they
    may be of positions that the row does not have.
    """
    found = np.zeros(len(where), np.int64)
    here = np.zeros(len(where))
    here[off] = distance(stored[off], reference[where[off] - 1])
    least = np.where(off & (here > FAR), NEARER * here, -1.0)
    for shift in SHIFTS:
        there = where + shift - 1
        tried = np.flatnonzero((least >= 0) & (there >= 0) & (there < len(reference)))
        if tried.size:
            far = distance(stored[tried], reference[there[tried]])
            better = far < least[tried]
            found[tried[better]], least[tried[better]] = shift, far[better]
    for shift in SHIFTS:
        if (found == shift).sum() > off.sum() / 2:
            found[off] = shift
    return found, here


def distance(stored: Labels, exact: Labels) -> NDArray[np.float64]:
    """How far labels are apart, float64 [n]: 0 the same, 1 nothing in common.

    The sum of |p - q| over the ids that either names, as a share of their mass in both.
    """
    same = match(stored.topk_ids, exact.topk_ids)
    p, q = (np.exp(v.astype(np.float64)) for v in (stored.topk_logprobs, exact.topk_logprobs))
    apart = np.abs(p - same.values(q, 0.0)).sum(axis=1) + np.where(same.unmatched, q, 0).sum(axis=1)
    return apart / np.maximum(p.sum(axis=1) + q.sum(axis=1), 1e-12)


def _scale(stored: Labels, exact: Labels) -> tuple[str, float] | None:
    """Whether labels are the teacher's at another temperature, or with the tail's mass given away.

    softmax(z / T) has logprobs z / T + constant: around the mean of a position, stored logprobs are
    the teacher's times 1 / T.
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
    if not mostly_same or xy <= 0 or xy * xy < LINE * xx * yy:
        return None
    if abs(xy / xx - 1) > SCALED:
        return "temperature", float(xx / xy)
    if (offset > 0).all() and float(offset.mean()) > SCALED:
        return "tail-lost", float(offset.mean())
    return None
