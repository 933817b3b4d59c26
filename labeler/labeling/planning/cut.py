"""Sequences to work units: a cut that depends only on the input and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from labeler.labeling.inputs.read_records import Reject
from labeler.labeling.planning.plan_spool import Spool
from labeler.labeling.rendering.render import Sequence
from schemas import SoftshardsError
from schemas.arrow import ASKED, PLAN_SCHEMA

REJECTS_SHOWN = 5
SHARE_AFTER = 100
"""Minimum records before the share of rejects can stop the run."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules for cutting the input, and for how much of it may be bad.

    Attributes:
        seed: of the assignment of rows to units; unit_labels: labels per unit, about.
        strict: stop at the first bad record.
        max_reject_share: stop when a larger share of records is bad.
    """

    seed: int
    unit_labels: int
    strict: bool = False
    max_reject_share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The cut in numbers; `tables` reads the units themselves from the spool, while it is open.

    Attributes:
        units, rows, n_tokens, n_labels: to label.
        records: rendered records; rejects: records that could not be rendered, or occur twice.
        known: rows left out because the label set has them already.
        templated: whether the chat template was used for any row.
        first_rejects: a few rejects, to show.
        rules, spool: the rules of the cut, and the rows.
    """

    units: int
    rows: int
    n_tokens: int
    n_labels: int
    records: int
    rejects: int
    known: int
    templated: bool
    first_rejects: tuple[Reject, ...]
    rules: Rules = field(repr=False)
    spool: Spool = field(repr=False)

    def tables(self, first_unit: int = 0) -> Iterator[pa.Table]:
        """Yield one table of PLAN_SCHEMA per unit, numbered from `first_unit`."""
        unit: list[Sequence] = []
        number, labels = first_unit, 0
        for sequence in self.spool.sequences():
            if unit and labels + sequence.n_labels > self.rules.unit_labels:
                yield _table(number, unit)
                unit, number, labels = [], number + 1, 0
            unit.append(sequence)
            labels += sequence.n_labels
        if unit:
            yield _table(number, unit)

    def all_rejects(self) -> Iterator[Reject]:
        """Yield all rejects, in the order of the input."""
        return self.spool.rejects()


class _SpoolWriter:
    """Puts sequences and rejects into the spool, and checks the share of rejects."""

    def __init__(self, spool: Spool, rules: Rules) -> None:
        self.spool, self.rules = spool, rules
        self.records = self.rejects = 0
        self.templated = False
        self.first_rejects: tuple[Reject, ...] = ()
        self._last: str | None = None

    def add(self, item: Sequence | Reject) -> None:
        if isinstance(item, Reject):
            self.reject(item)
        elif self.spool.add(_hash(self.rules.seed, item.id, item.chunk), item):
            self.templated |= item.templated
            self.records += item.id != self._last  # the chunks of a record come together
            self._last = item.id
        else:
            self.reject(_rejected(item, "id occurs twice"))
        if self.records + self.rejects >= SHARE_AFTER:
            self.check_share()

    def reject(self, bad: Reject) -> None:
        if self.rules.strict:
            raise SoftshardsError(bad.reason, path=bad.source, row=bad.id)
        self.spool.add_reject(bad)
        self.rejects += 1
        if len(self.first_rejects) < REJECTS_SHOWN:
            self.first_rejects += (bad,)

    def check_share(self) -> None:
        read = self.records + self.rejects
        if self.rejects > self.rules.max_reject_share * read:
            first = self.first_rejects[0]
            raise SoftshardsError(
                f"{self.rejects} of {read} records are bad ({self.rejects / read:.0%}, "
                f"more than --max-reject-share); the first: {first.reason}",
                path=first.source,
                row=first.id,
                hint="check the input and the column flags, or raise --max-reject-share",
            )


def plan_units(
    rendered: Iterable[Sequence | Reject],
    rules: Rules,
    spool: Spool,
    *,
    known: Iterable[Sequence] = (),
    inputs: str = "the input",
) -> Planned:
    """Assign sequences to units by a seeded hash of their keys, about `unit_labels` labels each.

    The order is a hash's, so any prefix of units is an unbiased sample of the input; inside a unit
    long rows come first, so that the engine's last steps are not spent on one long row.

    Args:
        rendered: sequences and rejects, in the order of the input; read once, not kept.
        rules: of the cut.
        spool: empty; receives the sequences.
        known: rows of the label set that the plan is added to; they are left out.
        inputs: the name of the input, for messages.

    Raises:
        SoftshardsError: there is nothing to label, too much is bad, or `strict` and a record is.
    """
    written = _SpoolWriter(spool, rules)
    for item in rendered:
        written.add(item)
    already = 0
    for row in known:
        found = spool.take(_hash(rules.seed, row.id, row.chunk))
        if found is None:
            continue
        if _content(found) == _content(row):
            already += 1
        else:
            written.reject(_rejected(found, "the label set has another record of this id"))
    units = rows = tokens = labels = in_unit = 0
    for n_tokens, n_labels in spool.counts():
        if not rows or in_unit + n_labels > rules.unit_labels:
            units, in_unit = units + 1, 0
        in_unit += n_labels
        rows, tokens, labels = rows + 1, tokens + n_tokens, labels + n_labels
    rejects = written.first_rejects
    if not rows and not already:
        first = f"; the first of {written.rejects} rejects: {rejects[0].reason}" if rejects else ""
        raise SoftshardsError(
            f"nothing to label: the input has no usable record{first}",
            path=inputs,
            row=rejects[0].id if rejects else None,
            hint="check the input and the column flags (`labeler label --help`, group Input)",
        )
    written.check_share()
    return Planned(
        units=units,
        rows=rows,
        n_tokens=tokens,
        n_labels=labels,
        records=written.records,
        rejects=written.rejects,
        known=already,
        templated=written.templated,
        first_rejects=rejects,
        rules=rules,
        spool=spool,
    )


def _hash(seed: int, id_: str, chunk: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{id_}\0{chunk}".encode()).digest()


def _content(sequence: Sequence) -> tuple[object, ...]:
    student = (sequence.student_input_ids, sequence.student_spans)
    return (sequence.input_ids, sequence.spans, *student)


def _rejected(sequence: Sequence, reason: str) -> Reject:
    return Reject(id=sequence.id, chunk=sequence.chunk, source=sequence.source, reason=reason)


def _table(unit: int, sequences: list[Sequence]) -> pa.Table:
    ordered = sorted(sequences, key=lambda s: (-len(s.input_ids), s.id, s.chunk))
    rows = [
        vars(s)
        | {
            "unit": unit,
            "n_tokens": len(s.input_ids),
            "spans": [*map(vars, s.spans)],
            "student_spans": s.student_spans and [*map(vars, s.student_spans)],
        }
        for s in ordered
    ]
    asks = any(s.asked_ids is not None for s in sequences)
    schema = PLAN_SCHEMA.append(ASKED) if asks else PLAN_SCHEMA
    return pa.Table.from_pylist(rows, schema=schema)
