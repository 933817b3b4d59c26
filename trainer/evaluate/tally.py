"""Add up the measurements of labels, for each group and each replicate of the set. No torch.

Memory grows with groups, and with documents by a few bytes for each; not with labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.arrow import SPAN_KINDS
from trainer.data.window import Window
from trainer.evaluate.bootstrap import FEW_DOCUMENTS, REPLICATES, document_counts, interval, to_text
from trainer.evaluate.calibration_error import BINS, bin_numbers, calibration_interval
from trainer.evaluate.figures import COLUMNS, figures, metrics
from trainer.evaluate.grouping import KIND, LENGTH, Grouping
from trainer.evaluate.model_differences import REPLICATED
from trainer.evaluate.results import Bin, Group, Metrics

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured at the n labels of some rows.

    Attributes:
        values: float64 [n, COLUMNS], by column.
        confidence: float64 [n], probability of the top token.
        correct: bool [n], True if it is the actual token.
        kinds: int64 [n], index into SPAN_KINDS.
        owners: int64 [n], the row that each label belongs to, counted from 0.
        weights: [n], 1 / the probability that the label was stored; None where all were. Every sum
            is then an estimate of the one over all labels, and every figure a ratio of them.
    """

    values: Array
    confidence: Array
    correct: NDArray[np.bool_]
    kinds: NDArray[np.int64]
    owners: NDArray[np.int64]
    weights: NDArray[np.floating] | None = None


class Part(NamedTuple):
    """Sums over the labels of a part of the set: of the sample first, then of each replicate.

    Attributes:
        sums: [1 + replicates, COLUMNS].
        bins: [1 + replicates, 3, BINS].
        documents: documents with labels in the part.
    """

    sums: Array
    bins: Array
    documents: int

    @property
    def metrics(self) -> Metrics:
        """The means of the sample."""
        return metrics(self.sums[0], self.bins[0])

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the interval of each figure that is known."""
        found: dict[str, tuple[float, float]] = {
            name: interval(values[1:], self.documents)
            for name, values in figures(self.sums, self.bins).items()
            if not np.isnan(values[0])
        }
        found["ece"] = calibration_interval(self.bins, self.documents)
        return found

    def replicates(self) -> dict[str, str]:
        """Return the figures that models are compared by, in each replicate, as `to_text`."""
        found = figures(self.sums, self.bins)
        known = (name for name in REPLICATED if not np.isnan(found[name][0]))
        return {name: to_text(found[name][1:]) for name in known}


class Tally:
    """Sums of one model.

    Args:
        grouping: the groups.
        replicates: also add up the replicates of the bootstrap.
    """

    def __init__(self, grouping: Grouping, *, replicates: bool = True) -> None:
        self.grouping, self._with_replicates = grouping, replicates
        width = len(COLUMNS) + 3 * BINS
        self.totals = np.zeros((grouping.size, 1 + REPLICATES * replicates, width))
        self._masks: dict[str, int] = {}  # bit g: has labels in group g; then one for each bin

    def add(self, window: Window, rows: NDArray[np.int64], found: Measurements) -> None:
        """Add the labels of rows of a window."""
        by_kind = _sum_by_row_and_kind(found, len(rows))
        by_row = by_kind.sum(1)
        documents = [window.documents[row] for row in rows]
        counts = np.ones((len(rows), self.totals.shape[1]))
        if self._with_replicates:
            counts[:, 1:] = document_counts(documents)
        has_kind = by_kind[:, :, 0] > 0
        with np.errstate(invalid="ignore"):  # a replicate without a document: 0 times infinity
            for kind in np.flatnonzero(has_kind.any(0)):
                self.totals[kind] += counts.T @ by_kind[:, kind]
            numbers = self.grouping.numbers(window, rows)
            for of_rows in numbers:
                for group in np.unique(of_rows):
                    inside = of_rows == group
                    self.totals[group] += counts[inside].T @ by_row[inside]
        self._mark(documents, has_kind, numbers, by_row[:, len(COLUMNS) : len(COLUMNS) + BINS] > 0)

    def _mark(
        self,
        documents: list[str],
        has_kind: NDArray[np.bool_],
        numbers: NDArray[np.int64],
        has_bin: NDArray[np.bool_],
    ) -> None:
        for row, document in enumerate(documents):
            groups = [*np.flatnonzero(has_kind[row]), *numbers[:, row]]
            groups += [*(np.flatnonzero(has_bin[row]) + self.grouping.size)]
            mask = self._masks.get(document, 0)
            for group in groups:
                mask |= 1 << int(group)
            self._masks[document] = mask

    @property
    def documents(self) -> int:
        """Number of documents that were added."""
        return len(self._masks)

    @property
    def whole(self) -> Part:
        """All labels."""
        return self._part(self.totals[: len(SPAN_KINDS)].sum(0), self.documents)

    def groups(self) -> dict[str, list[Group]]:
        """Return the groups that have labels, by dimension; those with the most documents first.

        Groups of lengths are in the order of length.
        """
        documents = self._documents_by_bit()
        found = {KIND: [self._group(n, kind, documents) for n, kind in enumerate(SPAN_KINDS)]}
        for dimension in self.grouping.dimensions:
            of_values = [self._group(n, v, documents) for v, n in dimension.groups.items()]
            others = self._group(dimension.pooled_into, None, documents, dimension.pooled)
            found[dimension.name] = [*of_values, others]
        with_labels = {name: [g for g in groups if g is not None] for name, groups in found.items()}
        for name, groups in with_labels.items():
            if name != LENGTH:
                groups.sort(key=lambda group: -group.documents)
        return with_labels

    def _group(
        self, number: int, value: str | None, documents: Counter[int], pooled: int | None = None
    ) -> Group | None:
        part = self._part(self.totals[number], documents[number])
        if not part.sums[0, 0]:
            return None
        is_large = part.documents >= FEW_DOCUMENTS and self._with_replicates
        return Group(
            value=value,
            pooled=pooled,
            documents=part.documents,
            metrics=part.metrics,
            intervals=part.intervals() if is_large else {},
            replicates=part.replicates() if is_large else {},
        )

    def calibration(self) -> list[Bin]:
        """Return the bins of the reliability diagram."""
        documents = self._documents_by_bit()
        bins = self.whole.bins
        with np.errstate(invalid="ignore"):
            accuracy = bins[:, 2] / bins[:, 0]
            confidence = bins[:, 1] / bins[:, 0]
        found = []
        for at in range(BINS):
            labels, known = round(bins[0, 0, at]), documents[self.grouping.size + at]
            is_large = known >= FEW_DOCUMENTS and self._with_replicates
            found.append(
                Bin(
                    low=at / BINS,
                    high=(at + 1) / BINS,
                    labels=labels,
                    documents=known,
                    confidence=float(confidence[0, at]) if labels else None,
                    accuracy=float(accuracy[0, at]) if labels else None,
                    interval=interval(accuracy[1:, at], known) if is_large else None,
                )
            )
        return found

    def _part(self, totals: Array, documents: int) -> Part:
        bins = totals[:, len(COLUMNS) :].reshape(-1, 3, BINS)
        return Part(totals[:, : len(COLUMNS)], bins, documents)

    def _documents_by_bit(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for mask, documents in Counter(self._masks.values()).items():
            for bit in range(mask.bit_length()):
                if mask >> bit & 1:
                    found[bit] += documents
        return found


def _sum_by_row_and_kind(found: Measurements, rows: int) -> Array:
    """Return the sums of each row's labels of each kind: [rows, kinds, COLUMNS + 3 BINS]."""
    kinds = len(SPAN_KINDS)
    cells = found.owners * kinds + found.kinds
    size = rows * kinds
    ones = np.ones(len(cells))
    counted = ones if found.weights is None else found.weights.astype(np.float64)
    columns = [np.bincount(cells, counted * column, size) for column in found.values.T]
    cells = cells * BINS + bin_numbers(found.confidence)
    correct = found.correct.astype(np.float64)
    binned = [
        np.bincount(cells, counted * column, size * BINS).reshape(size, BINS)
        for column in (ones, found.confidence, correct)
    ]
    summed = np.concatenate([np.stack(columns, 1), *binned], 1)
    return np.asarray(summed.reshape(rows, kinds, -1))
