"""From places in a rendered text to the tokens there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from labeler.labeling.rendering.spans import Span
from labeler.labeling.rendering.turn_kinds import Region
from labeler.labeling.teacher.teacher import Teacher


def own_offsets(teacher: Teacher, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return token ids and each token's characters, without neighbors that it swallows.

    Added tokens with `lstrip` or `rstrip` take whitespace around them, which is not theirs.
    """
    ids, offsets = teacher.encode_with_offsets(text)
    added = teacher.tokenizer.added_tokens_decoder
    greedy = {i: t.content for i, t in added.items() if t.lstrip or t.rstrip}
    if greedy:
        for place, token in enumerate(ids):
            if token in greedy:
                start = text.find(greedy[token], *offsets[place])
                if start >= 0:
                    offsets[place] = (start, start + len(greedy[token]))
    return ids, offsets


def token_spans(parts: list[Region], starts: list[int], stops: list[int]) -> Iterator[Span]:
    """Yield the token spans of a turn.

    A token at the edge of the turn counts only if it lies inside completely. Between two kinds
    inside the turn, a token with characters of both gets the second kind.

    Args:
        parts: its parts, without gaps.
        starts: first character of each token.
        stops: character after each token.
    """
    first = max(1, bisect_left(starts, parts[0].start))
    end = bisect_right(stops, parts[-1].stop)
    for part in parts:
        last = part is parts[-1]
        stop = end if last else min(end, max(first, bisect_right(stops, part.stop)))
        if first < stop:
            yield Span(start=first, stop=stop, kind=part.kind)
        first = max(first, stop)


def fill_with_prompt(spans: list[Span], length: int) -> Iterator[Span]:
    """Yield the spans, and spans of kind `prompt` over all other tokens but the first."""
    done = 1
    for span in spans:
        if done < span.start:
            yield Span(start=done, stop=span.start, kind="prompt")
        yield span
        done = span.stop
    if done < length:
        yield Span(start=done, stop=length, kind="prompt")
