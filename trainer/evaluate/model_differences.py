"""Intervals of a model's metrics, and of its differences from another model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from trainer.console import number_table
from trainer.evaluate.bootstrap import FEW_DOCUMENTS, LEVEL, Interval, from_text, interval, to_text
from trainer.evaluate.results import MeasuredModel

COMPARED = {"ce": "CE", "kl": "KL", "agreement": "top-1", "acceptance": "accepted"}
"""Metrics with intervals, and their headings."""


class Difference(NamedTuple):
    """A metric of one model minus that of another."""

    value: float
    interval: Interval

    def text(self) -> str:
        """Return the difference and half of its interval."""
        half = (self.interval.high - self.interval.low) / 2
        return f"{self.value:+.4f} ±{half:.4f}"

    @property
    def is_clear(self) -> bool:
        """True if the interval excludes 0."""
        return not self.interval.low <= 0 <= self.interval.high


def set_replicates(model: MeasuredModel, sums: dict[str, NDArray[np.float64]]) -> None:
    """Set `intervals` and `replicates` of a measured model.

    Args:
        model: the model.
        sums: by metric, and under "labels", the sum over labels in each replicate.
    """
    with np.errstate(invalid="ignore"):
        means = {name: sums[name] / sums["labels"] for name in COMPARED}
    model.replicates = {name: to_text(values) for name, values in means.items()}
    means["ppl"] = np.exp(np.minimum(means["ce"], 700.0))
    model.intervals = {name: interval(values) for name, values in means.items()}


def differences(model: MeasuredModel, other: MeasuredModel) -> dict[str, Difference]:
    """Return the differences of a model from another by metric; none if either has no replicates.

    Both were measured on the same replicates, so what makes documents hard for both cancels.
    """
    found = {}
    for name in COMPARED:
        if name in model.replicates and name in other.replicates:
            value = getattr(model.all, name) - getattr(other.all, name)
            first, second = (from_text(m.replicates[name]) for m in (model, other))
            found[name] = Difference(value, interval(first - second))
    return found


def differences_table(models: list[tuple[Path, MeasuredModel]]) -> Table:
    """Return a table of the differences of all models from the first."""
    (first, reference), *others = models
    caption = f"± half of the {LEVEL:.0%} interval over documents (paired bootstrap)"
    documents = reference.documents
    if documents is not None and documents < FEW_DOCUMENTS:
        caption += f"; with {documents} documents it is too narrow"
    table = number_table(f"difference from {first}", "model", *COMPARED.values(), caption=caption)
    for path, model in others:
        found = differences(model, reference)
        table.add_row(str(path), *(found[n].text() if n in found else "–" for n in COMPARED))
    return table
