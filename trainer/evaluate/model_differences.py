"""Differences between the figures of two models, with paired intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.bootstrap import Interval, from_text, interval
from trainer.evaluate.results import Measured

COMPARED = {
    "ce": "CE",
    "ppl": "ppl",
    "bits_per_byte": "bits/B",
    "kl": "KL",
    "agreement": "top-1",
    "overlap": "top-k",
    "accuracy": "accuracy",
    "ece": "ECE",
    "acceptance": "accepted",
}
"""Figures that models are compared by, and their headings."""
REPLICATED = tuple(name for name in COMPARED if name != "ppl")
"""Figures whose replicates are kept. The perplexity follows from the cross-entropy."""


class Difference(NamedTuple):
    """A figure of one model minus that of another."""

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


def differences(model: Measured, other: Measured) -> dict[str, Difference]:
    """Return the differences by figure, of those that both have, with replicates.

    Both were measured on the same replicates, so what makes documents hard for both cancels. This
    holds for two models, for a model and the teacher, and for a group measured with two models; not
    for groups with different documents.

    Args:
        model: a model, group or teacher.
        other: what it is compared with.
    """
    found = {}
    documents = min(model.documents, other.documents)
    for name in COMPARED:
        one, two = model.figure(name), other.figure(name)
        pair = _replicates(model, name), _replicates(other, name)
        if one is not None and two is not None and pair[0] is not None and pair[1] is not None:
            found[name] = Difference(one - two, interval(pair[0] - pair[1], documents))
    return found


def _replicates(model: Measured, name: str) -> NDArray[np.float64] | None:
    text = model.replicates.get("ce" if name == "ppl" else name)
    if text is None:
        return None
    values = from_text(text)
    return np.exp(np.minimum(values, 700.0)) if name == "ppl" else values
