"""`--keep-positions`: the stored labels of a row, by the teacher's entropy, and their weights."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from labeler.labeling.engines.engine import Labeled
from labeler.labeling.rendering.spans import Span
from schemas.kept_positions import EVEN, KeepRule, parse_rule

STREAM = 17
"""Tells the random numbers of this choice from others of the same row's seed."""


def keep_positions(labeled: list[Labeled], rule: str | None) -> list[Labeled]:
    """Return rows with the labels that a rule keeps, each run of them a span.

    Args:
        labeled: rows with the entropies of the full distributions.
        rule: as an identity spells it; None keeps all.
    """
    if rule is None:
        return labeled
    parsed = parse_rule(rule)
    return [_kept(row, parsed) for row in labeled]


def _kept(row: Labeled, rule: KeepRule) -> Labeled:
    assert row.labels.entropy is not None, "`LabelConfig` refuses engines without it"
    offset = float(np.random.default_rng([row.request.seed, STREAM]).random())
    kept, weights = choose_labels(rule, row.labels.entropy, offset)
    labels = dataclasses.replace(row.labels[kept], label_weights=weights)
    return dataclasses.replace(row, labels=labels, spans=_runs(row.spans, kept))


def choose_labels(
    rule: KeepRule, entropy: NDArray[np.floating], offset: float
) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
    """Choose labels of a row. The first one is always kept: it says where the prompt ends.

    `sample` keeps label t with the probability

        p_t = min(1, share (1/4 + 3/4 H_t / mean H)), p_0 = 1

    by systematic sampling (Madow, 1949): the labels at which the running sum of p passes a whole
    number. The weights 1 / p_t make every sum over the kept labels an unbiased estimate of the one
    over all (Horvitz and Thompson, 1952); the even part bounds them (a defensive mixture,
    Hesterberg, 1995).

    Args:
        rule: the rule.
        entropy: [n] in nats, of the labels of a row.
        offset: uniform in [0, 1), for `sample`.

    Returns:
        bool [n], and the weights of the kept ones in order; None for the other rules, which leave
        out labels that no weight could stand for.
    """
    h = entropy.astype(np.float64)
    weights = None
    if rule.kind == "entropy":
        kept = h > rule.value
    elif rule.kind == "top-share":
        kept = np.zeros(len(h), bool)
        kept[np.argsort(-h, kind="stable")[: int(np.ceil(rule.value * len(h)))]] = True
    else:
        mean = h.mean() if len(h) else 0.0
        relative = h / mean if mean > 0 else np.ones_like(h)
        p = np.minimum(1.0, rule.value * (EVEN + (1 - EVEN) * relative))
        p[:1] = 1.0
        kept = np.diff(np.floor(np.cumsum(p) + offset), prepend=np.floor(offset)) > 0
        weights = 1 / p
    kept[:1] = True
    return kept, None if weights is None else weights[kept].astype(np.float32)


def _runs(spans: tuple[Span, ...], kept: NDArray[np.bool_]) -> tuple[Span, ...]:
    """Return each run of kept labels as a span of its kind; runs end where spans do."""
    found: list[Span] = []
    first = 0
    for span in spans:
        inside = kept[first : first + span.stop - span.start]
        first += len(inside)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
        found += [
            Span(start=span.start + start, stop=span.start + stop, kind=span.kind)
            for start, stop in edges.reshape(-1, 2).tolist()
        ]
    return tuple(found)
