"""Spans of labeled tokens, and the error of a record that cannot be rendered."""

from __future__ import annotations

from dataclasses import dataclass, replace


class BadRecord(Exception):
    """The reason why a record cannot be rendered; becomes a reject."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """The tokens at start <= t < stop are labeled; `kind` is one of SPAN_KINDS."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A rendered sequence: its token ids, and the spans to label (sorted, disjoint)."""

    ids: list[int]
    spans: tuple[Span, ...] = ()


def count_labels(spans: tuple[Span, ...]) -> int:
    """Return the number of positions that the spans cover."""
    return sum(span.stop - span.start for span in spans)


def labels_before(spans: tuple[Span, ...], position: int) -> int:
    """Return the number of labels at positions below `position`."""
    return sum(max(0, min(span.stop, position) - span.start) for span in spans)


def first_labels(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    """Cut the spans down to their first `count` labels."""
    kept: list[Span] = []
    for span in spans:
        if count <= 0:
            break
        kept.append(replace(span, stop=min(span.stop, span.start + count)))
        count -= span.stop - span.start
    return tuple(kept)
