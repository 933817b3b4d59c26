"""Rows of a label set computed again with the reference engine, and what differs."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labeler.console import progress
from labeler.labeling.engines.capture import positions
from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labelsets.verify.classify import Fault, judge
from labeler.labelsets.verify.differences import compare
from labeler.labelsets.verify.fault_messages import verdict
from schemas import Labels, LabelSet, SoftshardsError, decode
from schemas.codec import LABEL_COLUMNS
from schemas.findings import Finding
from schemas.invariants import row_name
from schemas.shift_check import SHIFTS

COLUMNS = ("id", "chunk", "sample", "input_ids", "spans")


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Stored labels against the reference engine's, over `positions` labels of `rows` rows.

    Attributes:
        max_difference: largest difference of a logprob, in nats, of the ids stored and of the
            actual token.
        beyond_rounding: the same, less the rounding of the codec that it is stored in.
        max_tail_difference: largest difference of the tail's mass.
        other_ids: ids in a stored top-k that the reference has not, ties apart.
        argmax_agreement: share of positions with the same first id, by shift of the labels;
            correct labels have it at shift 0.
        good: nothing was found.
        verdict: one sentence.
        findings: what is wrong with the labels.
    """

    rows: int
    positions: int
    max_difference: float
    beyond_rounding: float
    max_tail_difference: float
    other_ids: int
    argmax_agreement: dict[int, float]
    good: bool
    verdict: str
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON values, without the findings, which are listed among the set's."""
        values = dataclasses.asdict(self)
        del values["findings"]
        return values


def rescore_rows(
    labels: LabelSet, count: int | None, model: Path | None, *, tolerance: float, seed: int
) -> Rescore:
    """Compute `count` rows (None: all) again with the reference engine and compare.

    The reference labels every position of a row, so that a label of another position is known
    wherever it comes from. One row is held at a time.

    Args:
        labels: the set; model: the teacher's folder, by default the one that the set names.
        count: rows, chosen by a seeded hash of their place.
        tolerance: largest difference of a logprob in nats beside the rounding of storage.
        seed: of the choice.

    Raises:
        SoftshardsError: the teacher is not there, or cannot label a row.
    """
    from labeler.labeling.engines.transformers_engine import TransformersEngine

    identity, codec = labels.manifest.identity, labels.manifest.codec
    path = teacher_path(labels, model)
    teacher = open_teacher(path, max_length=identity.max_length)
    dtype, head = identity.dtype, identity.head_dtype
    if "unknown" in (dtype, head):  # an import that could not say
        dtype, head = teacher.dtype, "float32"
    engine = TransformersEngine(teacher, dtype=dtype, head_dtype=head, k=identity.k, sampling=None)
    sums = _Sums()
    with progress("rows") as bar:
        total = labels.rows if count is None else min(count, labels.rows)
        rows = _rows(labels, count, seed)
        for index, row in enumerate(bar.track(rows, total=total, description="rescoring")):
            whole = (Span(start=1, stop=len(row["input_ids"]), kind="text"),)
            request = Request(
                index=index, sample=0, input_ids=row["input_ids"], spans=whole, seed=0
            )
            (outcome,) = engine.run([request])
            if not isinstance(outcome, Labeled):
                raise SoftshardsError(outcome.reason, path=path, row=row["id"])
            sums.add(row, outcome.labels, tolerance, codec)
    engine.close()
    return sums.rescore(tolerance)


def teacher_path(labels: LabelSet, model: Path | None) -> Path:
    """The folder of the teacher to compare with.

    Raises:
        SoftshardsError: neither the user nor the set names one.
    """
    named = model or labels.manifest.provenance.get("teacher")
    if named is None:
        raise SoftshardsError(
            "the label set does not say where its teacher is",
            path=labels.path,
            hint="give its folder with --model",
        )
    return Path(str(named))


def _rows(labels: LabelSet, count: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows as key, ids, spans and decoded labels; `count` of them by a hash of their place."""

    def order(place: tuple[int, int]) -> bytes:
        return hashlib.sha256(f"{seed}:{place}".encode()).digest()

    groups = labels.row_groups
    places = ((g, row) for g, group in enumerate(groups) for row in range(group.rows))
    chosen = None if count is None else sorted(heapq.nsmallest(count, places, key=order))
    for number in range(len(groups)) if chosen is None else sorted({g for g, _ in chosen}):
        table = labels.read_row_group(groups[number], [*COLUMNS, *LABEL_COLUMNS])
        taken = range(table.num_rows)
        for row in taken if chosen is None else [r for g, r in chosen if g == number]:
            one = table.slice(row, 1)
            (values,) = one.select(COLUMNS).to_pylist()
            if values["spans"]:
                yield values | {"labels": decode(one).labels}


class _Sums:
    """What is kept of the rows compared so far."""

    def __init__(self) -> None:
        self._rows = self._positions = self._other = 0
        self._difference = self._beyond = self._tail = 0.0
        self._hits = dict.fromkeys((0, *SHIFTS), 0)
        self._faults: list[Fault] = []
        self._kinds: dict[str, int] = {}

    def add(self, row: dict[str, Any], reference: Labels, tolerance: float, codec: str) -> None:
        """Compare a row with the reference's labels of all its positions but the first."""
        spans = [Span(**span) for span in row["spans"]]
        stored, where = row["labels"], positions(spans)
        compared = compare(stored, reference[where - 1], tolerance=tolerance, codec=codec)
        self._rows += 1
        self._positions += len(where)
        self._difference = max(self._difference, float(compared.difference.max(initial=0)))
        self._beyond = max(self._beyond, float(compared.beyond.max(initial=0)))
        self._tail = max(self._tail, float(compared.tail.max(initial=0)))
        self._other += int(compared.other_ids.sum())
        for shift in self._hits:
            there = where + shift - 1
            inside = (there >= 0) & (there < len(reference))
            first = reference.topk_ids[there[inside], 0]
            self._hits[shift] += int((stored.topk_ids[inside, 0] == first).sum())
        kinds = np.repeat([s.kind for s in spans], [s.stop - s.start for s in spans])
        for kind, number in zip(*np.unique(kinds, return_counts=True), strict=True):
            self._kinds[str(kind)] = self._kinds.get(str(kind), 0) + int(number)
        name = row_name((row["id"], row["chunk"], row["sample"]))
        self._faults += judge(name, where, kinds, stored, reference, compared)

    def rescore(self, tolerance: float) -> Rescore:
        """The result over all rows."""
        findings = verdict(
            self._faults,
            rows=self._rows,
            positions=self._positions,
            kinds=self._kinds,
            tolerance=tolerance,
        )
        return Rescore(
            rows=self._rows,
            positions=self._positions,
            max_difference=self._difference,
            beyond_rounding=self._beyond,
            max_tail_difference=self._tail,
            other_ids=self._other,
            argmax_agreement={s: n / max(1, self._positions) for s, n in self._hits.items()},
            good=not findings,
            verdict=findings[0].what if findings else "the labels are the teacher's",
            findings=tuple(findings),
        )
