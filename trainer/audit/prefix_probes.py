"""Ask a model to continue the prefixes of training rows, and compare with what came next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas import LabelSet
from trainer.audit.audit_results import Memorization, MemorizedRow, Share
from trainer.audit.continuations import Speaker
from trainer.audit.overlap import copied_shares, longest_run, matched_tokens
from trainer.audit.read_training import Ids, TrainingRow, draw_number
from trainer.audit.training_text import TrainingText
from trainer.console import ProgressBar

NEAR_VERBATIM = 0.5
"""Share of copied n-grams: with 50 tokens and n = 8, two changed tokens leave 0.63 of them, and
three 0.44."""


@dataclass(frozen=True)
class PrefixProbe:
    """A row, cut: the model is given the prefix before `start`."""

    row: TrainingRow
    start: int
    prefix: Ids
    rest: Ids
    """All tokens of the row from `start` on."""


def prefix_probes(
    rows: Sequence[TrainingRow], *, prefix: int, continuation: int, seed: int
) -> list[PrefixProbe]:
    """Cut each row at a random position that has room for prefix and continuation."""
    probes = []
    for row in rows:
        starts = row.starts(prefix, continuation)
        start = starts[draw_number(seed, "start", row.key) % len(starts)]
        probes.append(PrefixProbe(row, start, row.ids[start - prefix : start], row.ids[start:]))
    return probes


def measure_memorization(
    speaker: Speaker,
    probes: Sequence[PrefixProbe],
    labels: LabelSet,
    text: TrainingText,
    *,
    continuation: int,
    ngram: int,
    show: bool,
) -> tuple[Memorization, list[tuple[Ids, Ids]]]:
    """Return what a model continues verbatim, and its continuations with their prefixes."""
    prefixes = [probe.prefix for probe in probes]
    with ProgressBar("continue prefixes", len(probes)) as progress:
        said = speaker.continue_greedily(prefixes, [continuation] * len(probes), progress.advance)
    copied = copied_shares(labels, prefixes, said, ngram)
    found = []
    for probe, ids, share in zip(probes, said, copied):
        matched = matched_tokens(ids, probe.rest)
        found.append(
            MemorizedRow(
                row=probe.row.key,
                start=probe.start,
                matched=matched,
                overlap=longest_run(ids, probe.rest),
                copied=share,
                extracted=matched == continuation,
                text=text.after(probe.prefix, ids) if show else None,
            )
        )
    near = [row for row in found if row.copied >= NEAR_VERBATIM]
    number = len(found)
    return Memorization(
        extracted=Share(found=sum(row.extracted for row in found), of=number),
        near_verbatim=Share(found=len(near), of=number),
        matched=sum(row.matched for row in found) / number,
        overlap=sum(row.overlap for row in found) / number,
        copied=sum(copied) / number,
        longest=max(row.overlap for row in found),
        rows=[row for row in found if row.extracted or row.copied >= NEAR_VERBATIM],
    ), list(zip(prefixes, said))
