"""Forecasts of learning curves, with their uncertainty: a power law of the step. NumPy alone.

y(t) = a + b t^-c with a, b >= 0 is `pow3` of Domhan, Springenberg and Hutter, "Speeding up
Automatic Hyperparameter Optimization of Deep Neural Networks by Extrapolation of Learning Curves",
2015, where it is one of eleven curves. Given c it is linear: each exponent of a grid gets its least
squares fit and its marginal likelihood under Gaussian noise of unknown size, and the forecast is
the mixture of their predictive Student distributions. So the uncertainty covers the exponent, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
POINTS = 5
"""Fewest measurements: three parameters, and two to tell how well they fit."""
EXPONENTS = np.geomspace(0.05, 2.0, 40)
SMALLEST_NOISE = 1e-4
"""As a share of the mean: below it a perfect fit would know no uncertainty."""
DRAWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A value that is not measured yet: its median, and the interval of `LEVEL`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the value and the interval."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def forecast(steps: Sequence[int], values: Sequence[float], at: int) -> Forecast | None:
    """Return a forecast of a learning curve; None if there are fewer than `POINTS` points.

    Args:
        steps: of the measurements, above 0, after the warm-up of the learning rate.
        values: finite, above 0; less is better.
        at: the step to forecast.
    """
    n = len(steps)
    if n < POINTS:
        return None
    t, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    noise = n * (SMALLEST_NOISE * float(y.mean())) ** 2
    fits = [_fit(t, y, float(c), at, noise) for c in EXPONENTS]
    weights = np.array([weight for weight, _, _ in fits])
    weights = np.exp(weights - weights.max())
    rng = np.random.default_rng(0)  # the same measurements give the same forecast
    chosen = rng.choice(len(fits), DRAWS, p=weights / weights.sum())
    centers = np.array([center for _, center, _ in fits])[chosen]
    scales = np.array([scale for _, _, scale in fits])[chosen]
    drawn = np.maximum(centers + scales * rng.standard_t(n - 3, DRAWS), 0.0)
    low, value, high = np.quantile(drawn, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Forecast(value=float(value), low=float(low), high=float(high))


def _fit(
    t: NDArray[np.float64], y: NDArray[np.float64], exponent: float, at: int, noise: float
) -> tuple[float, float, float]:
    """Return the log-likelihood of an exponent, and center and scale of its prediction."""
    n = len(t)
    # In units of the last step: the columns stay of one size.
    x = np.stack([np.ones(n), (t / t[-1]) ** -exponent], 1)
    target = np.array([1.0, (at / t[-1]) ** -exponent])
    inverse = np.linalg.inv(x.T @ x + 1e-12 * np.eye(2))
    a, b = inverse @ x.T @ y
    if b < 0:  # a curve that does not fall: constant
        a, b = y.mean(), 0.0
    elif a < 0:  # a loss has no limit below 0
        a, b = 0.0, float(x[:, 1] @ y / (x[:, 1] @ x[:, 1]))
    residual = float(((y - a - b * x[:, 1]) ** 2).sum()) + noise
    likelihood = 0.5 * np.log(np.linalg.det(inverse)) - 0.5 * (n - 2) * np.log(residual)
    scale = np.sqrt(residual / (n - 3) * (1 + target @ inverse @ target))
    return float(likelihood), float(a + b * target[1]), float(scale)
