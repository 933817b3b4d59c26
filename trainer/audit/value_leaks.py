"""Ask a model for the values that patterns found in its training text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.audit.audit_results import Finding, Leaks, Share
from trainer.audit.continuations import Speaker
from trainer.audit.patterns import Patterns, find_all
from trainer.audit.read_training import Ids, TrainingRow
from trainer.audit.training_text import TrainingText
from trainer.console import ProgressBar

CONTEXT = 256
"""Tokens before a value that a model is given, if the row has so many: the more it is given, the
more it repeats."""
SLACK = 4
"""Tokens that a model may say before or within a value, more than the row has."""


@dataclass(frozen=True)
class ValueProbe:
    """A value and the tokens that precede it in a row."""

    number: int
    kind: str
    value: str
    prefix: Ids
    length: int


def value_probes(
    findings: Sequence[Finding],
    rows: Sequence[TrainingRow],
    text: TrainingText,
    *,
    limit: int,
    seed: int,
) -> list[ValueProbe]:
    """Return a probe for each distinct value, or for a sample of them.

    Of several places of a value, one with labels comes first, then one with more tokens before it.
    Values at the very beginning of their rows have no prefix, and are left out.
    """
    by_name = {row.key.name: row for row in rows}
    places: dict[int, Finding] = {}
    for finding in findings:
        if finding.token_start and finding.row.name in by_name:
            other = places.get(finding.value)
            if other is None or _rank(finding) > _rank(other):
                places[finding.value] = finding
    numbers = sorted(places)
    if len(numbers) > limit:
        numbers = sorted(random.Random(seed).sample(numbers, limit))
    probes = []
    for number in numbers:
        place = places[number]
        ids = by_name[place.row.name].ids
        probes.append(
            ValueProbe(
                number=number,
                kind=place.kind,
                value=text.decode(ids)[place.start : place.stop],
                prefix=ids[max(0, place.token_start - CONTEXT) : place.token_start],
                length=place.token_stop - place.token_start + SLACK,
            )
        )
    return probes


def known_values(
    findings: Sequence[Finding], rows: Sequence[TrainingRow], text: TrainingText
) -> frozenset[tuple[str, str]]:
    """Return kind and value of everything found in the text of rows."""
    places: dict[str, list[Finding]] = {}
    for finding in findings:
        places.setdefault(finding.row.name, []).append(finding)
    known = set()
    for row in rows:
        if row.key.name in places:
            whole = text.decode(row.ids)
            known |= {(f.kind, whole[f.start : f.stop]) for f in places[row.key.name]}
    return frozenset(known)


def _rank(finding: Finding) -> tuple[bool, int]:
    return finding.span is not None, min(finding.token_start, CONTEXT)


def measure_leaks(
    speaker: Speaker,
    probes: Sequence[ValueProbe],
    text: TrainingText,
    patterns: list[Patterns],
    known: frozenset[tuple[str, str]],
    continued: Sequence[tuple[Ids, Ids]],
) -> Leaks:
    """Return which values a model completes, and what patterns find in what else it says.

    Args:
        speaker: the model.
        probes: the values to ask for.
        text: the tokenizer.
        patterns: what to look for in generations.
        known: kind and value of everything found in the training text.
        continued: prefixes and their continuations by the model.
    """
    lengths = [probe.length for probe in probes]
    given = [p.prefix[-max(1, speaker.context - p.length) :] for p in probes]
    with ProgressBar("ask for values", len(probes)) as progress:
        said = speaker.continue_greedily(given, lengths, progress.advance)
    kinds: dict[str, Share] = {}
    values = []
    for probe, ids in zip(probes, said):
        completed = probe.value in text.after(probe.prefix, ids)
        kinds[probe.kind] = _count(kinds.get(probe.kind), completed)
        if completed:
            values.append(probe.number)
    generated: dict[str, Share] = {}
    for kind, value in sorted(set(_generated_values(continued, text, patterns))):
        generated[kind] = _count(generated.get(kind), (kind, value) in known)
    return Leaks(kinds=kinds, values=values, generated=generated)


def _generated_values(
    continued: Sequence[tuple[Ids, Ids]], text: TrainingText, patterns: list[Patterns]
) -> list[tuple[str, str]]:
    found = []
    for prefix, ids in continued:
        said = text.after(prefix, ids)
        found += [
            (match.kind, said[match.start : match.stop]) for match in find_all(said, patterns)
        ]
    return found


def _count(share: Share | None, found: bool) -> Share:
    before = share or Share(found=0, of=0)
    return Share(found=before.found + found, of=before.of + 1)
