"""Spans of labels over token ids, and the error of a record that cannot be rendered."""

from __future__ import annotations

from dataclasses import dataclass, replace


class BadRecord(Exception):
    """Why a record cannot be rendered; becomes a reject."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Labels are wanted for the tokens at start <= t < stop; `kind` is one of SPAN_KINDS."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A rendered sequence: its token ids, and the spans (sorted, disjoint) to be labeled."""

    ids: list[int]
    spans: tuple[Span, ...] = ()


def count_labels(spans: tuple[Span, ...]) -> int:
    """Positions that the spans cover."""
    return sum(span.stop - span.start for span in spans)


def labels_before(spans: tuple[Span, ...], position: int) -> int:
    """Labels of positions below `position`."""
    return sum(max(0, min(span.stop, position) - span.start) for span in spans)


def first_labels(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    """The spans cut down to their first `count` labels."""
    kept: list[Span] = []
    for span in spans:
        if count <= 0:
            break
        kept.append(replace(span, stop=min(span.stop, span.start + count)))
        count -= span.stop - span.start
    return tuple(kept)
