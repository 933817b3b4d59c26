"""Successive halving: how far candidates are trained, and who is trained further.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
2016 (arXiv 1502.07943); the factor as in Hyperband (arXiv 1603.06560). A rung trains its candidates
to the same step. The best 1 / factor of them are trained further, to a step that is factor times as
far. Unlike there, at least two are: near candidates change places while the learning rate decays.
No torch, no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from trainer.select.forecast import Forecast

FINALISTS = 2
"""Least number of candidates that reach the last step."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung: the step that its candidates are trained to, and their largest number."""

    step: int
    candidates: int


def plan_rungs(candidates: int, steps: int, factor: float, rungs: int | None = None) -> list[Rung]:
    """Return the rungs.

    Args:
        candidates: their number, at least 1.
        steps: of the last rung.
        factor: of the candidates of a rung, 1 in this many is trained further, at least FINALISTS.
        rungs: their number; by default floor(log candidates / log factor) + 1. Fewer if `steps` are
            too few: each rung is at least a step longer than the one before.
    """
    halvings = int(math.log(candidates) / math.log(factor) + 1e-9) if rungs is None else rungs - 1
    planned = [
        Rung(
            step=max(1, round(steps / factor ** (halvings - i))),
            candidates=max(min(FINALISTS, candidates), int(candidates / factor**i + 1e-9)),
        )
        for i in range(halvings + 1)
    ]
    longer = [rung for rung, after in pairwise(planned) if rung.step < after.step]
    planned = [*longer, planned[-1]]
    return [Rung(step=planned[0].step, candidates=candidates), *planned[1:]]


def trained_steps(rungs: list[Rung]) -> int:
    """Return the steps of all candidates: each rung resumes where the one before ended."""
    starts = [0, *(rung.step for rung in rungs[:-1])]
    return sum(rung.candidates * (rung.step - start) for rung, start in zip(rungs, starts))


def longest(steps: int, most: int, candidates: int, factor: float, rungs: int | None = None) -> int:
    """Return the steps of the last rung, at most `most`, so that all take `steps` at most; or 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        fits = trained_steps(plan_rungs(candidates, middle, factor, rungs)) <= steps
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def eliminate(
    values: Mapping[str, float], forecasts: Mapping[str, Forecast], keep: int
) -> dict[str, str]:
    """Return the candidates that are not trained further, and why.

    Args:
        values: the metric of each candidate at the end of the rung; less is better.
        forecasts: of the metric at the last step, where there are any.
        keep: candidates of the next rung.

    Returns:
        A reason per candidate: its rank, or a forecast that is worse beyond its uncertainty.
    """
    order = sorted(values, key=lambda name: (values[name], name))
    out = {
        name: f"rank {rank} of {len(order)}, the next rung takes {keep}"
        for rank, name in enumerate(order, 1)
        if rank > keep
    }
    ceiling = min((forecasts[n].high for n in order if n in forecasts), default=math.inf)
    for name in order[1:keep]:
        if name in forecasts and forecasts[name].low > ceiling:
            out[name] = (
                f"forecast {forecasts[name]} for the last step: worse than the best candidate's "
                f"even at its lower end (at most {ceiling:.4f})"
            )
    return out
