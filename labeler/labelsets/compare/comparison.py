"""Compare two label sets over the same rows: the distance between their teachers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from labeler.labelsets.common.decode_rows import decode_rows
from labeler.labelsets.common.row_matching import (
    MATCHED_COLUMNS,
    match_rows,
    require_same_tokenizer,
    row_table,
)
from schemas import PAD_ID, DecodedLabels, Labels, LabelSet, SoftshardsError
from schemas.arrow import KEY_COLUMNS
from schemas.codec import LABEL_COLUMNS
from schemas.divergence import diverge
from schemas.labeled_spans import span_positions

COLUMNS = (*KEY_COLUMNS, "input_ids", "spans", *LABEL_COLUMNS)
TOP = 3
CONTEXT = 24
"""Tokens shown before a position."""
KEPT_GROUPS = 4
"""Row groups of the second set in memory: rows mostly come in the same order."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One label set: its teacher, its size, and its figures over the positions compared."""

    path: str
    teacher: str
    dtype: str
    head_dtype: str
    quantization: str | None
    k: int
    rows: int
    perplexity: float
    coverage: float
    bytes_per_label: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The distribution of a quantity over all positions compared."""

    mean: float
    median: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """A position where the two teachers differ most.

    Attributes:
        row: id of the row.
        chunk, sample: the rest of its key.
        position: index of the token in the row.
        kl: KL(A||B) there, in nats.
        ids: the tokens before it, followed by the actual token.
        top_a, top_b: each teacher's most likely ids, with their probabilities.
    """

    row: str
    chunk: int
    sample: int
    position: int
    kl: float
    ids: list[int]
    top_a: list[tuple[int, float]]
    top_b: list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare_sets`.

    KL is in nats per position, and a lower bound (`schemas.divergence`).

    Attributes:
        a, b: the two sets.
        rows, positions: numbers of rows and positions compared.
        only_a, only_b: number of rows that only one set has; not compared.
        other_tokens: number of rows in both sets with different tokens or labeled positions; not
            compared.
        kl_a_to_b, kl_b_to_a: KL(A||B) and KL(B||A).
        same_first: share of positions with the same most likely id.
        token_difference: |difference| of the actual token's logprob, in nats.
        common_mass: A's mean mass of the ids that both sets store. KL is blind to differences
            within the rest.
        worst: the positions with the largest KL(A||B), in descending order.
    """

    a: Side
    b: Side
    rows: int
    positions: int
    only_a: int
    only_b: int
    other_tokens: int
    kl_a_to_b: Spread
    kl_b_to_a: Spread
    same_first: float
    token_difference: Spread
    common_mass: float
    worst: list[Position]


def compare_sets(a: LabelSet, b: LabelSet, *, worst: int) -> Comparison:
    """Compare the labels of the rows that two sets have in common, with the same tokens.

    Both sets are read row group by row group. Memory grows by their keys and 24 bytes per position.
    Sets planned with different seeds have their rows in different orders, which costs one read of a
    row group per row.

    Args:
        a: the reference.
        b: the other set.
        worst: number of positions in `Comparison.worst`.

    Raises:
        SoftshardsError: the tokenizers differ, nothing can be compared, or a set is damaged.
    """
    require_same_tokenizer(a, b)
    keys_a = row_table(a, MATCHED_COLUMNS).with_row_index("number")
    keys_b = row_table(b, MATCHED_COLUMNS)
    found_b = match_rows(keys_a, keys_b)
    pairs = keys_a.select("number", "group", "row").join(found_b, on="number").sort("group", "row")
    sums = _Sums(worst)
    for tables in _matched(a, b, pairs):
        sums.add(*tables)
    if not sums.positions:
        raise SoftshardsError(
            f"nothing to compare: of {pairs.height} rows in both sets, none has the same tokens "
            "and labeled positions",
            path=b.path,
            hint=f"`labeler label {a.path} --model OTHER_TEACHER` labels the rows of a set again",
        )
    nll, tail = sums.nll / sums.positions, sums.tail / sums.positions
    return Comparison(
        a=_side(a, nll[0], tail[0]),
        b=_side(b, nll[1], tail[1]),
        rows=sums.rows,
        positions=sums.positions,
        only_a=keys_a.height - pairs.height,
        only_b=keys_b.height - pairs.height,
        other_tokens=pairs.height - sums.rows,
        kl_a_to_b=_spread(sums.kl_a_to_b),
        kl_b_to_a=_spread(sums.kl_b_to_a),
        same_first=sums.same_first / sums.positions,
        token_difference=_spread(sums.token_difference),
        common_mass=sums.common_mass / sums.positions,
        worst=sums.worst,
    )


def _matched(a: LabelSet, b: LabelSet, pairs: pl.DataFrame) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield the rows of `pairs` as verified tables of equal length, one from each set."""

    @functools.lru_cache(maxsize=KEPT_GROUPS)
    def group_of_b(number: int) -> pa.Table:
        return b.read_row_group(b.row_groups[number], COLUMNS)

    for (number,), rows in pairs.group_by(["group"], maintain_order=True):
        table = a.read_row_group(a.row_groups[number], COLUMNS)
        for (number_b,), places in rows.group_by(["group_b"], maintain_order=True):
            one, other = places["row"].to_list(), places["row_b"].to_list()
            yield table.take(one), group_of_b(number_b).take(other)


class _Sums:
    """Sums and values per position, over the rows compared so far."""

    def __init__(self, worst: int) -> None:
        self.rows = self.positions = self.same_first = 0
        self.common_mass = 0.0
        self.nll, self.tail = np.zeros(2), np.zeros(2)
        self.kl_a_to_b: list[NDArray[np.float64]] = []
        self.kl_b_to_a: list[NDArray[np.float64]] = []
        self.token_difference: list[NDArray[np.float64]] = []
        self.worst: list[Position] = []
        self._count = worst

    def add(self, a: pa.Table, b: pa.Table) -> None:
        """Compare the rows that have the same tokens and labeled positions."""
        same = [
            row
            for row in range(a.num_rows)
            if all(a[name][row].equals(b[name][row]) for name in ("input_ids", "spans"))
        ]
        if not same:
            return
        a, b = a.take(same), b.take(same)
        labels_a, labels_b = decode_rows(a), decode_rows(b).labels
        found = diverge(labels_a.labels, labels_b)
        for side, labels in enumerate((labels_a.labels, labels_b)):
            self.nll[side] -= labels.token_logprob.sum(dtype=np.float64)
            self.tail[side] += np.exp(labels.tail_logprob.astype(np.float64)).sum()
        self.kl_a_to_b.append(found.a_to_b)
        self.kl_b_to_a.append(found.b_to_a)
        self.token_difference.append(found.token_difference)
        self.same_first += int(found.same_first.sum())
        self.common_mass += float(found.common_mass.sum())
        self.rows += len(same)
        self.positions += len(labels_b)
        self._keep_worst(a, labels_a, labels_b, found.a_to_b)

    def _keep_worst(
        self, rows: pa.Table, a: DecodedLabels, b: Labels, kl: NDArray[np.float64]
    ) -> None:
        found = []
        for label in np.argsort(-kl, kind="stable")[: self._count]:
            row = int(np.searchsorted(a.offsets, label, side="right")) - 1
            ids = rows["input_ids"][row].as_py()
            positions = span_positions(rows["spans"][row].as_py())
            position = int(positions[label - a.offsets[row]])
            found.append(
                Position(
                    row=rows["id"][row].as_py(),
                    chunk=rows["chunk"][row].as_py(),
                    sample=rows["sample"][row].as_py(),
                    position=position,
                    kl=float(kl[label]),
                    ids=ids[max(0, position - CONTEXT) : position + 1],
                    top_a=_top(a.labels, label),
                    top_b=_top(b, label),
                )
            )
        self.worst = sorted([*self.worst, *found], key=lambda p: -p.kl)[: self._count]


def _top(labels: Labels, label: int) -> list[tuple[int, float]]:
    """Return the most likely ids of a label, with their probabilities."""
    ids, logprobs = labels.topk_ids[label, :TOP], labels.topk_logprobs[label, :TOP]
    return [(int(i), float(np.exp(p))) for i, p in zip(ids, logprobs) if i != PAD_ID]


def _side(labels: LabelSet, nll: float, tail: float) -> Side:
    identity = labels.manifest.identity
    return Side(
        path=labels.place,
        teacher=str(labels.manifest.provenance.get("teacher")),
        dtype=identity.dtype,
        head_dtype=identity.head_dtype,
        quantization=identity.quantization,
        k=identity.k,
        rows=labels.rows,
        perplexity=float(np.exp(nll)),
        coverage=float(1 - tail),
        bytes_per_label=round(labels.stored_bytes / max(1, labels.labels), 1),
    )


def _spread(parts: list[NDArray[np.float64]]) -> Spread:
    values = np.concatenate(parts)
    median, p99 = np.quantile(values, (0.5, 0.99))
    return Spread(
        mean=float(values.mean()), median=float(median), p99=float(p99), max=float(values.max())
    )
