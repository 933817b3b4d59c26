"""Stored hidden states against the reference engine's: shifted, of another layer, or different."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas import LabelSet
from schemas.findings import Finding
from schemas.shift_check import SHIFTS

FAR = 0.2
"""Squared error, relative to the spread of the teacher's states, from which states are not its own.
Rounding to bfloat16 costs less than 0.01, and `states/2` at 0.06 nats some hundredths."""
CLEARLY = 0.25
"""Another place fits if it leaves less than this share of the error."""
FEWEST = 4
"""Positions that a row needs, to know the spread of its states."""


class StateErrors:
    """Errors of the states of rows compared so far.

    Kept for each layer, against the same layer at each shift and against each other layer.
    """

    def __init__(self, labels: LabelSet) -> None:
        self.layers = () if labels.states is None else labels.states.layers
        self._bases = [labels.basis(layer) for layer in self.layers]
        self._errors: dict[tuple[str, int | str], list[NDArray[np.float64]]] = {}

    def add(
        self, stored: NDArray[Any], reference: NDArray[Any], positions: NDArray[np.integer]
    ) -> None:
        """Compare the states of a row.

        Args:
            stored: [n, layers, d], as they are stored.
            reference: the teacher's at positions 1, 2, ... of the row.
            positions: int [n], of the stored ones.
        """
        if len(reference) < FEWEST:
            return
        for number, layer in enumerate(self.layers):
            basis = self._bases[number]
            values = stored[:, number]
            states = values.astype(np.float32) if basis is None else basis.states(values)
            for shift in (0, *SHIFTS):
                there = positions + shift - 1
                inside = (there >= 0) & (there < len(reference))
                errors = _relative(states[inside], reference[:, number], there[inside])
                self._errors.setdefault((layer, shift), []).append(errors)
            for at, other in enumerate(self.layers):
                if other != layer:
                    errors = _relative(states, reference[:, at], positions - 1)
                    self._errors.setdefault((layer, other), []).append(errors)

    @property
    def medians(self) -> dict[str, float]:
        """The median relative error of each layer, of the labels that were compared."""
        known = {layer: self._median(layer, 0) for layer in self.layers}
        return {layer: error for layer, error in known.items() if error is not None}

    def findings(self) -> Iterator[Finding]:
        """Yield the layers whose states are not the teacher's, and whose they are."""
        for layer, error in self.medians.items():
            if error <= FAR:
                continue
            places = [place for name, place in self._errors if name == layer and place != 0]
            found = {place: self._median(layer, place) for place in places}
            fitting = {p: e for p, e in found.items() if e is not None and e < CLEARLY * error}
            best = min(fitting, key=lambda place: fitting[place], default=None)
            if isinstance(best, int):
                what = (
                    f"the states of {layer} are the teacher's at the label {best:+d}: they are "
                    f"shifted by {-best:+d}"
                )
                yield Finding(kind="shift", what=what)
            elif best is not None:
                what = f"the states of {layer} are the teacher's of {best}"
                yield Finding(kind="states", what=what)
            else:
                what = (
                    f"the states of {layer} are not the teacher's: their median squared error is "
                    f"{error:.2g} of the spread (another layer, or a different teacher)"
                )
                yield Finding(kind="states", what=what)

    def _median(self, layer: str, place: int | str) -> float | None:
        errors = np.concatenate([*self._errors.get((layer, place), []), np.empty(0)])
        return float(np.median(errors)) if len(errors) else None


def _relative(
    states: NDArray[np.float32], reference: NDArray[Any], there: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the squared error [n] of states, relative to the spread of the reference.

    Dimensions count by their own spread: a few of a residual stream are a thousand times larger.
    """
    exact = reference.astype(np.float64)
    spread = exact.std(axis=0)
    spread = np.maximum(spread, 1e-6 * max(float(spread.max(initial=0)), 1e-30))
    error = ((states - exact[there]) / spread) ** 2
    return np.asarray(error.mean(axis=1))
