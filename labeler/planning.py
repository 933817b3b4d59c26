"""Sequences to work units: a cut of the input that depends on nothing but the input and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa

from labeler.rendering import Sequence
from labeler.sources import Reject
from schemas import SoftshardsError
from schemas.arrow import PLAN_SCHEMA


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The cut: one table a unit, and the records that cannot be labeled.

    Attributes:
        units: tables of PLAN_SCHEMA, one a unit.
        rejects: records that could not be rendered.
    """

    units: list[pa.Table]
    rejects: list[Reject]

    @property
    def rows(self) -> int:
        """Number of sequences to label."""
        return sum(unit.num_rows for unit in self.units)

    @property
    def reject_share(self) -> float:
        """Rejects as a share of all records read."""
        labeled = {name for unit in self.units for name in unit["id"].to_pylist()}
        return len(self.rejects) / (len(self.rejects) + len(labeled))

    def total(self, column: str) -> int:
        """Sum of `n_tokens` or `n_labels` over all units."""
        return sum(sum(unit[column].to_pylist()) for unit in self.units)


def plan_units(
    rendered: Iterable[Sequence | Reject],
    *,
    seed: int,
    unit_labels: int,
    strict: bool,
    inputs: str = "the input",
) -> Planned:
    """Assign sequences to units by a seeded hash of their keys, about `unit_labels` labels each.

    The order is a hash's, so any prefix of units is an unbiased sample of the input; inside a unit
    long rows come first, so that the engine's last steps are not spent on one long row.

    Raises:
        SoftshardsError: there is nothing to label, or `strict` and a record is bad.
    """
    sequences: dict[tuple[str, int], Sequence] = {}
    rejects: list[Reject] = []
    for item in rendered:
        bad = item if isinstance(item, Reject) else None
        if isinstance(item, Sequence):
            if (item.id, item.chunk) not in sequences:
                sequences[item.id, item.chunk] = item
                continue
            bad = Reject(id=item.id, chunk=item.chunk, source=item.source, reason="id occurs twice")
        assert bad is not None
        if strict:
            raise SoftshardsError(bad.reason, path=bad.source, row=bad.id)
        rejects.append(bad)
    if not sequences:
        first = f"; the first of {len(rejects)} rejects: {rejects[0].reason}" if rejects else ""
        raise SoftshardsError(
            f"nothing to label: the input has no usable record{first}",
            path=inputs,
            row=rejects[0].id if rejects else None,
            mend="check the input and the column flags (`labeler label --help`, group Input)",
        )
    shuffled = sorted(sequences.values(), key=lambda s: _hash(seed, s.id, s.chunk))
    units: list[list[Sequence]] = [[]]
    labels = 0
    for sequence in shuffled:
        if units[-1] and labels + sequence.n_labels > unit_labels:
            units.append([])
            labels = 0
        units[-1].append(sequence)
        labels += sequence.n_labels
    return Planned(units=[_table(n, unit) for n, unit in enumerate(units)], rejects=rejects)


def _hash(seed: int, id_: str, chunk: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{id_}\0{chunk}".encode()).digest()


def _table(unit: int, sequences: list[Sequence]) -> pa.Table:
    ordered = sorted(sequences, key=lambda s: (-len(s.input_ids), s.id, s.chunk))
    rows = [
        {n: v for n, v in asdict(s).items() if n != "templated"}
        | {"unit": unit, "n_tokens": len(s.input_ids), "spans": [*map(asdict, s.spans)]}
        for s in ordered
    ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
