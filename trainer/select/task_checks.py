"""Say before anything is trained that a task is a poor candidate for distillation. No torch."""

from __future__ import annotations

import numpy as np

from schemas import LabelSet
from trainer.data.window import ROW_COLUMNS, decode_window, drop_unlabeled
from trainer.record import Record
from trainer.select.select_file import Checks

SAMPLE = 16
"""Row groups that are read of a set, evenly over it."""


class SetFacts(Record):
    """What a label set says about its teacher, over a sample of its labels.

    Attributes:
        path: of the set.
        labels: that were read.
        entropy: mean over labels, in nats; over top-k and tail as one more outcome, so a lower
            bound, where the set has no entropies.
        confidence: mean probability of the top token.
        covered: mean probability of the stored ids together. None, as are the other two, where the
            set has no top-k, but hidden states alone.
        rejects: share of the records that were not labeled.
    """

    path: str
    labels: int
    entropy: float | None
    confidence: float | None
    covered: float | None
    rejects: float


def set_facts(labels: LabelSet) -> SetFacts:
    """Return what a label set says about its teacher.

    Raises:
        LabelSetError: rows are damaged.
    """
    identity = labels.manifest.identity
    groups = labels.row_groups if identity.k else ()
    sums, count = np.zeros(3), 0
    for place in np.unique(np.linspace(0, len(groups) - 1, SAMPLE).astype(int)) if groups else ():
        table = drop_unlabeled(labels.read_row_group(groups[int(place)], [*ROW_COLUMNS]))
        if not table.num_rows:
            continue
        found = decode_window(table, vocab_size=identity.vocab_size).labels
        top = found.topk_logprobs.astype(np.float64)
        tail = found.tail_logprob.astype(np.float64)
        entropies = found.entropy
        if entropies is None:
            entropies = -(_plogp(top).sum(1) + _plogp(tail))
        sums += [entropies.sum(), np.exp(top[:, 0]).sum(), len(tail) - np.exp(tail).sum()]
        count += len(tail)
    totals = labels.manifest.totals
    rejects = totals.rejects / max(1, totals.rejects + totals.rows) if totals else 0.0
    entropy, confidence, covered = (sums / count).tolist() if count else (None, None, None)
    return SetFacts(
        path=labels.place,
        labels=count,
        entropy=entropy,
        confidence=confidence,
        covered=covered,
        rejects=rejects,
    )


def _plogp(logp: np.ndarray) -> np.ndarray:
    """Return p log p, 0 where p is."""
    p = np.exp(logp)
    return np.where(p > 0, p * np.where(p > 0, logp, 0.0), 0.0)


def teacher_warnings(probe: SetFacts, checks: Checks) -> list[str]:
    """Return a warning if the teacher is unsure of the probe."""
    unsure = []
    if probe.entropy is not None and probe.entropy > checks.entropy:
        unsure.append(f"an entropy of {probe.entropy:.2f} nats (limit {checks.entropy:g})")
    if probe.confidence is not None and probe.confidence < checks.confidence:
        unsure.append(
            f"a top token with probability {probe.confidence:.2f} (limit {checks.confidence:g})"
        )
    if not unsure:
        return []
    return [
        f"{probe.path}: poor candidate: the teacher itself is unsure, {' and '.join(unsure)} in "
        "the mean: a student can learn little from it; take a teacher that knows this text"
    ]


def coverage_warnings(found: SetFacts, checks: Checks) -> list[str]:
    """Return a warning for each way in which a set covers too little."""
    warnings = []
    if found.covered is not None and found.covered < checks.covered:
        warnings.append(
            f"{found.path}: poor candidate: coverage is low, the stored ids hold "
            f"{found.covered:.1%} of the teacher's probability (limit {checks.covered:.0%}): label "
            "with a larger --k"
        )
    if found.rejects > checks.rejects:
        warnings.append(
            f"{found.path}: poor candidate: coverage is low, {found.rejects:.1%} of the records "
            f"were rejected (limit {checks.rejects:.0%}): see `labeler inspect`"
        )
    return warnings


def student_warning(student: str, kl: float, checks: Checks) -> str | None:
    """Return a warning if an untrained student is as good as the teacher already."""
    if kl >= checks.student_kl:
        return None
    return (
        f"{student}: poor candidate: before any training its KL to the teacher is {kl:.4f} nats "
        f"(limit {checks.student_kl:g}): it is as good already, there is little left to learn"
    )
