"""The largest rounding error of a stored log-probability, by codec."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas import compact
from schemas.version import COMPACT_1

HALF_STEP = 2.0**-11
"""Relative rounding error of float16: a logprob x is stored as x (1 +- 2^-11)."""


def rounding(logprobs: NDArray[np.floating], codec: str) -> NDArray[np.float64]:
    """Return the largest error of each of `topk_logprobs` in this codec, in nats; 0 for -inf.

    The other columns (`tail_logprob`, `token_logprob`, ...) are float16 in every codec.
    """
    if codec == COMPACT_1:
        return compact.rounding(logprobs)
    x = np.abs(np.asarray(logprobs, dtype=np.float64))
    return np.where(np.isfinite(x), x, 0.0) * HALF_STEP
