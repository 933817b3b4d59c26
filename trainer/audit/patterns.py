"""Places in a text that look like personal data or a secret, by whatever patterns are asked for."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from trainer.audit.audit_results import Group


class Match(NamedTuple):
    """A place in a text: characters [start, stop)."""

    group: Group
    kind: str
    start: int
    stop: int
    score: float


class Patterns(Protocol):
    """A finder of matches."""

    settings: dict[str, str]
    """What it looks for and its version: part of an audit's settings."""

    def find(self, text: str) -> list[Match]:
        """Return the matches in a text, in any order."""


def find_all(text: str, patterns: list[Patterns]) -> list[Match]:
    """Return the matches of all patterns in order; of two that overlap, the one with more score."""
    kept: list[Match] = []
    found = [match for each in patterns for match in each.find(text)]
    for match in sorted(found, key=lambda m: (-m.score, m.start - m.stop, m.start, m.kind)):
        if all(match.stop <= other.start or other.stop <= match.start for other in kept):
            kept.append(match)
    return sorted(kept, key=lambda m: m.start)
