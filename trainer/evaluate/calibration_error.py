"""Calibration: is a model that says 80 % right 80 % of the time?

Bins have equal width: bin b holds confidences in (b / BINS, (b + 1) / BINS].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.bootstrap import Interval, interval
from trainer.evaluate.results import ECE_BINS

BINS = ECE_BINS
FAR = 2.0
"""Standard errors from 0 at which a bin's gap counts as one."""


def bin_numbers(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each label, by the probability of its top token."""
    clipped = confidence.clip(0, 1)  # rounding may leave a little more than 1
    return np.asarray((np.ceil(clipped * BINS).astype(np.int64) - 1).clip(0))


def expected_calibration_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over labels of |accuracy - confidence| of their bin, from 0 to 1.

        sum_b (n_b / n) |correct_b / n_b - confidence_b / n_b|

    (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599, eq. 3.)

    Args:
        sums: [..., 3, BINS]: labels, confidence and correct, summed over each bin.
    """
    return np.asarray(np.abs(_gaps(sums)).sum(-1))


def top1_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of labels whose top token is the actual one; NaN without labels.

    Args:
        sums: [..., 3, BINS], as of `expected_calibration_error`.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[..., 2, :].sum(-1) / sums[..., 0, :].sum(-1))


def calibration_interval(sums: NDArray[np.float64], documents: int) -> Interval:
    """Return the interval of the ECE. It may lie below the ECE of the sample.

    The ECE of a sample is too high, because noise in a bin counts as a gap, and replicates add more
    noise: their percentiles exclude a small true ECE always. The upper bound is their percentile.
    For the lower one, gaps that are noise by their standard error over replicates start from 0, and
    what the replicates then have too much is taken from the sample's ECE.

    Args:
        sums: [1 + REPLICATES, 3, BINS]: of the sample, and of each replicate.
        documents: documents of the sample.
    """
    gaps = _gaps(sums)
    gaps = gaps[~np.isnan(gaps).any(1)]
    sample, replicates = gaps[0], gaps[1:]
    upper = interval(np.abs(replicates).sum(1), documents)
    start = np.where(np.abs(sample) > FAR * replicates.std(0), sample, 0.0)
    surplus = np.abs(replicates - sample + start).sum(1) - np.abs(start).sum()
    lower = interval(np.abs(sample).sum() - surplus, documents)
    return Interval(max(0.0, min(lower.low, upper.low)), upper.high)


def _gaps(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (correct - confidence) / labels of all bins: [..., BINS]."""
    count, confidence, correct = (sums[..., at, :] for at in range(3))
    with np.errstate(invalid="ignore"):
        return np.asarray((correct - confidence) / count.sum(-1, keepdims=True))
