"""Labeled spans of a sequence: the positions that they cover, and the rules that they must meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.arrow import SPAN_KINDS


class SpanRecord(TypedDict):
    """A span as columns `spans` and `student_spans` hold it: positions [start, stop)."""

    start: int
    stop: int
    kind: str


def positions(starts: ArrayLike, stops: ArrayLike) -> NDArray[np.int64]:
    """Return the positions [n] that spans [start, stop) cover, in span order.

    Args:
        starts: first position of each span.
        stops: the position after the last one of each span.
    """
    starts = np.asarray(starts, np.int64)
    lengths = np.asarray(stops, np.int64) - starts
    before = np.cumsum(lengths) - lengths  # positions covered by earlier spans
    first: NDArray[np.int64] = np.repeat(starts - before, lengths)
    return first + np.arange(len(first))


def span_positions(spans: Iterable[SpanRecord]) -> NDArray[np.int64]:
    """Return the positions [n] that spans of a row cover, in span order."""
    spans = list(spans)
    return positions([s["start"] for s in spans], [s["stop"] for s in spans])


def labeled_tokens(
    ids: Sequence[int] | NDArray[np.integer], spans: Sequence[SpanRecord], *, thinned: bool
) -> NDArray[np.int64]:
    """Return the labeled tokens of a row, in span order.

    Args:
        ids: the tokens of the row.
        spans: its spans.
        thinned: labels were left out (`Identity.keep_positions`), so that labeled tokens are no
            text. Then all tokens from the first label on are returned.
    """
    tokens = np.asarray(ids, np.int64)
    if thinned:
        return tokens[spans[0]["start"] :] if spans else tokens[:0]
    return tokens[span_positions(spans)]


def span_problem(spans: Sequence[SpanRecord], n_tokens: int, n_labels: int) -> str | None:
    """Describe the first rule that a row's spans break; None where they are valid.

    Spans must be sorted and disjoint, with 1 <= start < stop <= n_tokens, and cover n_labels
    positions.
    """
    last = 1
    for span in spans:
        if not last <= span["start"] < span["stop"] <= n_tokens:
            where = f"[{span['start']}, {span['stop']})"
            return f"span {where} is empty, out of order or outside 1..{n_tokens}"
        if span["kind"] not in SPAN_KINDS:
            return f"unknown span kind {span['kind']!r}"
        last = span["stop"]
    total = sum(span["stop"] - span["start"] for span in spans)
    return None if total == n_labels else f"spans cover {total} positions, labels {n_labels}"
