"""Calibration: is a model that says 80 % right 80 % of the time?"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.evaluate.results import ECE_BINS

BINS = ECE_BINS


def bin_sums(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return each label's contribution to its bin: the bin's number and (1, confidence, correct).

    Args:
        confidence: [n], probability of the top token.
        correct: [n], True if it is the actual token.

    Returns:
        float64 [n, 4]. Bins have equal width: bin b holds (b / BINS, (b + 1) / BINS].
    """
    confidence = confidence.double().clamp(0, 1)  # rounding may leave a little more than 1
    bins = ((confidence * BINS).ceil() - 1).clamp_min(0)
    return torch.stack([bins, torch.ones_like(confidence), confidence, correct.double()], 1)


def expected_calibration_error(sums: Tensor) -> float:
    """Return the mean over labels of |accuracy - confidence| of their bin, from 0 to 1.

        sum_b (n_b / n) |correct_b / n_b - confidence_b / n_b|

    (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599, eq. 3.)

    Args:
        sums: [BINS, 3]: labels, confidence and correct, summed over each bin.
    """
    count, confidence, correct = sums.unbind(1)
    return float((correct - confidence).abs().sum() / count.sum())
