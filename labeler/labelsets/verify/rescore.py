"""Label rows of a set again with the reference engine, and compare."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labeler.console import progress
from labeler.labeling.teacher.locate_teacher import locate_named
from labeler.labelsets.verify.classify import Fault, find_faults
from labeler.labelsets.verify.differences import compare_labels
from labeler.labelsets.verify.fault_messages import fault_findings
from labeler.labelsets.verify.rescore_states import StateErrors
from schemas import Labels, LabelSet, SoftshardsError, decode
from schemas.arrow import KEY_COLUMNS
from schemas.codec import LABEL_COLUMNS
from schemas.findings import Finding
from schemas.hidden_part import state_columns
from schemas.invariants import Key, row_name
from schemas.labeled_spans import SpanRecord, span_positions
from schemas.shift_check import SHIFTS

COLUMNS = (*KEY_COLUMNS, "input_ids", "spans", *LABEL_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Stored labels against the reference engine's, over `positions` labels of `rows` rows.

    Attributes:
        max_difference: largest difference of a logprob in nats, over the stored ids and the actual
            token.
        beyond_rounding: the same, minus the rounding of the codec.
        max_tail_difference: largest difference of the tail's mass.
        other_ids: number of stored top-k ids that are missing from the reference's, except ties.
        argmax_agreement: share of positions with the same first id, by shift of the labels. Correct
            labels agree at shift 0.
        good: True if nothing is wrong.
        verdict: one sentence.
        state_errors: median squared error of the hidden states of each layer, relative to their
            spread.
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
    state_errors: dict[str, float]
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, object]:
        """Return the JSON values, without the findings, which are listed among the set's."""
        values = dataclasses.asdict(self)
        del values["findings"]
        return values


def rescore_rows(
    labels: LabelSet, count: int | None, path: Path, *, tolerance: float, seed: int
) -> Rescore:
    """Label `count` rows (None: all) again with the reference engine, and compare.

    The reference labels every position of a row, so a label is recognized at any other position.
    One row is held at a time.

    Args:
        labels: the set.
        count: number of rows, chosen by a seeded hash of their place.
        path: the teacher's folder.
        tolerance: largest difference of a logprob that counts as equal, in nats, on top of the
            rounding of storage.
        seed: seed for the choice of rows.

    Raises:
        SoftshardsError: the teacher is missing, or cannot label a row.
    """
    # These import torch.
    from labeler.labeling.engines.decoder_layers import inner_layers
    from labeler.labeling.engines.engine import Labeled, Request
    from labeler.labeling.engines.transformers_engine import TransformersEngine
    from labeler.labeling.rendering.spans import Span
    from labeler.labeling.teacher.teacher import open_teacher

    identity, codec = labels.manifest.identity, labels.manifest.rounding_codec
    teacher = open_teacher(path, max_length=identity.max_length)
    dtype, head = identity.dtype, identity.head_dtype
    if "unknown" in (dtype, head):  # an imported set that does not record them
        dtype, head = teacher.dtype, "float32"
    states = StateErrors(labels)
    record = labels.states
    deepest = max(inner_layers(states.layers).values(), default=-1)
    has_them = (  # another teacher: its labels tell
        record is not None
        and teacher.width in (None, record.dimensions)
        and (teacher.layers is None or deepest < teacher.layers)
    )
    engine = TransformersEngine(
        teacher,
        dtype=dtype,
        head_dtype=head,
        k=identity.k,
        sampling=None,
        states=states.layers if has_them else (),
    )
    sums = _Sums()
    with progress("rows") as bar:
        total = labels.rows if count is None else min(count, labels.rows)
        rows = _stored_rows(labels, count, seed)
        for index, row in enumerate(bar.track(rows, total=total, description="rescoring")):
            whole = (Span(start=1, stop=len(row.input_ids), kind="text"),)
            request = Request(index=index, sample=0, input_ids=row.input_ids, spans=whole, seed=0)
            (outcome,) = engine.run([request])
            if not isinstance(outcome, Labeled):
                raise SoftshardsError(outcome.reason, path=path, row=row.key[0])
            sums.add(row, outcome.labels, tolerance, codec)
            stored, reference = row.labels.states, outcome.labels.states
            if stored is not None and reference is not None:
                states.add(stored, reference, span_positions(row.spans))
    engine.close()
    return sums.rescore(tolerance, states)


def teacher_path(labels: LabelSet, model: Path | None, revision: str | None = None) -> Path:
    """Return the folder of the teacher to compare with.

    Raises:
        SoftshardsError: neither `model` nor the set names one.
    """
    source = locate_named(labels.manifest.provenance, model, revision)
    if source is None:
        raise SoftshardsError(
            "the label set does not name its teacher's folder",
            path=labels.place,
            hint="give the folder with --model",
        )
    return source.folder


@dataclass(frozen=True, kw_only=True)
class _StoredRow:
    key: Key
    input_ids: list[int]
    spans: list[SpanRecord]
    labels: Labels


def _stored_rows(labels: LabelSet, count: int | None, seed: int) -> Iterator[_StoredRow]:
    """Yield the rows that have labels; with `count`, of that many chosen by a hash of their place.

    Args:
        labels: the set.
        count: number of rows to choose; None takes all.
        seed: seed of the hash.
    """

    def order(place: tuple[int, int]) -> bytes:
        return hashlib.sha256(f"{seed}:{place}".encode()).digest()

    groups = labels.row_groups
    layers = () if labels.states is None else labels.states.layers
    columns = [*COLUMNS, *state_columns(layers)]
    places = ((g, row) for g, group in enumerate(groups) for row in range(group.rows))
    chosen = None if count is None else sorted(heapq.nsmallest(count, places, key=order))
    for number in range(len(groups)) if chosen is None else sorted({g for g, _ in chosen}):
        table = labels.read_row_group(groups[number], columns)
        taken = range(table.num_rows)
        for row in taken if chosen is None else [r for g, r in chosen if g == number]:
            one = table.slice(row, 1)
            (values,) = one.select([*KEY_COLUMNS, "input_ids", "spans"]).to_pylist()
            if values["spans"]:
                yield _StoredRow(
                    key=(values["id"], values["chunk"], values["sample"]),
                    input_ids=values["input_ids"],
                    spans=values["spans"],
                    labels=decode(one).labels,
                )


class _Sums:
    """Sums and faults over the rows compared so far."""

    def __init__(self) -> None:
        self._rows = self._positions = self._other_ids = 0
        self._difference = self._beyond = self._tail = 0.0
        self._hits = dict.fromkeys((0, *SHIFTS), 0)
        self._faults: list[Fault] = []
        self._span_kinds: dict[str, int] = {}

    def add(self, row: _StoredRow, reference: Labels, tolerance: float, codec: str) -> None:
        """Compare a row with the reference's labels of all its positions but the first."""
        stored, positions = row.labels, span_positions(row.spans)
        found = compare_labels(stored, reference[positions - 1], tolerance=tolerance, codec=codec)
        self._rows += 1
        self._positions += len(positions)
        self._difference = max(self._difference, float(found.logprob.max(initial=0)))
        self._beyond = max(self._beyond, float(found.beyond_rounding.max(initial=0)))
        self._tail = max(self._tail, float(found.tail.max(initial=0)))
        self._other_ids += int(found.other_ids.sum())
        for shift in self._hits:
            there = positions + shift - 1
            inside = (there >= 0) & (there < len(reference))
            first = reference.topk_ids[there[inside], 0]
            self._hits[shift] += int((stored.topk_ids[inside, 0] == first).sum())
        lengths = [span["stop"] - span["start"] for span in row.spans]
        span_kinds = np.repeat([span["kind"] for span in row.spans], lengths)
        for kind, number in zip(*np.unique(span_kinds, return_counts=True), strict=True):
            self._span_kinds[str(kind)] = self._span_kinds.get(str(kind), 0) + int(number)
        self._faults += find_faults(
            row_name(row.key), positions, span_kinds, stored, reference, found
        )

    def rescore(self, tolerance: float, states: StateErrors) -> Rescore:
        """Return the result over all rows."""
        findings = fault_findings(
            self._faults,
            rows=self._rows,
            positions=self._positions,
            span_kinds=self._span_kinds,
            tolerance=tolerance,
        )
        findings = [*findings, *states.findings()]
        return Rescore(
            rows=self._rows,
            positions=self._positions,
            max_difference=self._difference,
            beyond_rounding=self._beyond,
            max_tail_difference=self._tail,
            other_ids=self._other_ids,
            argmax_agreement={s: n / max(1, self._positions) for s, n in self._hits.items()},
            good=not findings,
            verdict=findings[0].what if findings else "the labels are the teacher's",
            state_errors=states.medians,
            findings=tuple(findings),
        )
