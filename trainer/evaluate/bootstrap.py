"""Confidence intervals over the documents of a held-out set, by a Poisson bootstrap.

A replicate of the set counts each document as often as a Poisson variable of mean 1 says, which
needs one pass and no document in memory (Chamandy et al., "Estimating Uncertainty for Massive Data
Streams", 2012). The variables follow from the document's id: all models are measured on the same
replicates, so their differences are paired.
"""

from __future__ import annotations

import base64
import hashlib
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REPLICATES = 500
LEVEL = 0.95
FEW_DOCUMENTS = 30
"""With fewer documents, the interval is too narrow: the percentiles of a bootstrap are."""

_NORMAL = NormalDist()


class Interval(NamedTuple):
    """Bounds of the central 95 % of the replicates."""

    low: float
    high: float


def document_counts(documents: list[str]) -> NDArray[np.float64]:
    """Return how often each replicate counts each document: [documents, REPLICATES]."""
    counts = np.empty((len(documents), REPLICATES))
    for row, name in zip(counts, documents):
        seed = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        row[:] = np.random.default_rng(int.from_bytes(seed, "little")).poisson(1.0, REPLICATES)
    return counts


def interval(values: NDArray[np.float64], documents: int | None = None) -> Interval:
    """Return the interval of a metric, or of a difference, from its value in each replicate.

    The percentiles are farther out than 2.5 % and 97.5 %, as Student's t is wider than a normal:
    plain ones are too narrow by sqrt((n - 1) / n) and by the ratio of the two ("expanded
    percentile interval": Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).

    Args:
        values: [REPLICATES]; those that count no document are NaN, and left out.
        documents: documents that the metric was measured on; None for so many that it makes no
            difference.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return Interval(math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # a KL may be infinite
        low, high = np.quantile(known, (_tail(documents), 1 - _tail(documents)))
    return Interval(float(low), float(high))


def _tail(documents: int | None) -> float:
    """Return the share of replicates below the interval."""
    if documents is None:
        return (1 - LEVEL) / 2
    if documents < 2:
        return 0.0
    z = _NORMAL.inv_cdf((1 - LEVEL) / 2)
    n = documents - 1
    # Student's t: Abramowitz and Stegun, 26.7.5.
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return _NORMAL.cdf(t * math.sqrt(documents / n))


def to_text(means: NDArray[np.float64]) -> str:
    """Return values as base64 of little-endian float32, as results files hold them."""
    return base64.b64encode(means.astype("<f4").tobytes()).decode()


def from_text(text: str) -> NDArray[np.float64]:
    """Return the values of `to_text`.

    Raises:
        ValueError: the text is something else.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
