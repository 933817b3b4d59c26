"""Histograms that are filled in parts, and drawn as bars in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.bar import Bar
from rich.table import Table

FINE = 4096
"""Bins of the histogram that gives the quantiles."""
BAR = 24
"""Width of the longest bar in characters."""


class HistogramFacts(TypedDict):
    """A histogram as JSON values."""

    edges: list[float]
    counts: list[int]


@dataclass
class Histogram:
    """Counts of values per bin, and their quantiles, in constant memory.

    Attributes:
        edges: ascending; bin i holds edges[i] <= value < edges[i + 1], and the last bin also its
            end. Values outside are counted in the first or last bin.
        counts: int64, one per bin.
    """

    edges: Sequence[float]
    counts: NDArray[np.int64] = field(init=False)
    _fine: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) - 1, np.int64)
        self._fine = np.zeros(FINE, np.int64)

    @property
    def total(self) -> int:
        """Number of values so far."""
        return int(self.counts.sum())

    def add(self, values: NDArray[np.float32] | NDArray[np.float64]) -> None:
        """Count values, none of which may be NaN."""
        ends = (self.edges[0], self.edges[-1])
        inside = np.clip(values.astype(np.float64), *ends)
        self.counts += np.histogram(inside, self.edges)[0]
        self._fine += np.histogram(inside, FINE, ends)[0]

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile, to 1/4096 of the range of the edges; None without values."""
        if not self.total:
            return None
        place = int(np.searchsorted(np.cumsum(self._fine), q * self.total))
        low, high = self.edges[0], self.edges[-1]
        return low + (min(place, FINE - 1) + 0.5) * (high - low) / FINE

    def facts(self) -> HistogramFacts:
        """Return edges and counts as JSON values."""
        return {"edges": [float(e) for e in self.edges], "counts": self.counts.tolist()}


def length_edges(shortest: int, longest: int, bins: int = 10) -> list[float]:
    """Return round edges of at most `bins` bins that hold all lengths from shortest to longest."""
    span = max(1, longest - shortest + 1)
    magnitude = 10 ** int(np.log10(max(1, span // bins)))
    step = next(s * magnitude for s in (1, 2, 5, 10, 20) if span <= s * magnitude * bins)
    start = shortest - shortest % step
    return [float(e) for e in range(start, longest + step + 1, step)]


def bars(title: str, names: Sequence[str], counts: Sequence[int], color: str) -> Table:
    """Draw one bar per name, with its share of the total."""
    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(justify="right", min_width=12)
    table.add_column(width=BAR)
    table.add_column(justify="right", min_width=6)
    most, total = max(counts, default=0), sum(counts)
    for name, count in zip(names, counts, strict=True):
        share = f"{100 * count / total:.1f}%" if total else ""
        table.add_row(name, Bar(max(1, most), 0, count, width=BAR, color=color), share)
    return table


def bin_names(edges: Sequence[float], *, open_end: bool = False, whole: bool = False) -> list[str]:
    """Return the names of bins, such as `0.5 - 1`.

    Args:
        edges: edges of the bins.
        open_end: the last bin has no upper end: `12 +`.
        whole: values are whole numbers, so a bin ends at the last one inside: `10 - 19`.
    """
    names = [
        f"{a:g}" if whole and b == a + 1 else f"{a:g} - {b - whole:g}" for a, b in pairwise(edges)
    ]
    if open_end:
        names[-1] = f"{edges[-2]:g} +"
    return names
