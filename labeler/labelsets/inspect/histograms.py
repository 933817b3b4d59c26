"""Histograms that are filled part by part, and drawn as bars in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.bar import Bar
from rich.table import Table

FINE = 4096
"""Bins of the histogram that quantiles are read from."""
BAR = 24
"""Width of the longest bar in characters."""


@dataclass
class Histogram:
    """How many values are in each bin, and quantiles, in memory that does not grow.

    Attributes:
        edges: ascending; bin i has edges[i] <= value < edges[i + 1], the last bin its end, too.
            Values outside are counted in the first and the last bin.
        counts: int64, one a bin.
    """

    edges: Sequence[float]
    counts: NDArray[np.int64] = field(init=False)
    _fine: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) - 1, np.int64)
        self._fine = np.zeros(FINE, np.int64)

    @property
    def total(self) -> int:
        """Values so far."""
        return int(self.counts.sum())

    def add(self, values: NDArray[Any]) -> None:
        """Count some values; not one may be NaN."""
        ends = (self.edges[0], self.edges[-1])
        inside = np.clip(values.astype(np.float64), *ends)
        self.counts += np.histogram(inside, self.edges)[0]
        self._fine += np.histogram(inside, FINE, ends)[0]

    def quantile(self, q: float) -> float | None:
        """The value that a share `q` of all is below, to 1/4096 of the range of the edges."""
        if not self.total:
            return None
        place = int(np.searchsorted(np.cumsum(self._fine), q * self.total))
        low, high = self.edges[0], self.edges[-1]
        return low + (min(place, FINE - 1) + 0.5) * (high - low) / FINE

    def facts(self) -> dict[str, Any]:
        """Edges and counts as JSON values."""
        return {"edges": [float(e) for e in self.edges], "counts": self.counts.tolist()}


def length_edges(shortest: int, longest: int, bins: int = 10) -> list[float]:
    """Round edges, at most `bins` and one more, that hold all lengths from shortest to longest."""
    span = max(1, longest - shortest + 1)
    magnitude = 10 ** int(np.log10(max(1, span // bins)))
    step = next(s * magnitude for s in (1, 2, 5, 10, 20) if span <= s * magnitude * bins)
    start = shortest - shortest % step
    return [float(e) for e in range(start, longest + step + 1, step)]


def bars(title: str, names: Sequence[str], counts: Sequence[int], color: str) -> Table:
    """A bar a name, with its share of all."""
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
    """`0.5 - 1` and so on; `12 +` at the end; the last whole number inside for `whole` ones."""
    names = [
        f"{a:g}" if whole and b == a + 1 else f"{a:g} - {b - whole:g}" for a, b in pairwise(edges)
    ]
    if open_end:
        names[-1] = f"{edges[-2]:g} +"
    return names
