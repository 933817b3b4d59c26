"""Rungs, forecasts and eliminations, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.select.forecast import Forecast, forecast
from trainer.select.rungs import Rung, eliminate, longest, plan_rungs, trained_steps


def rungs(*pairs: tuple[int, int]) -> list[Rung]:
    return [Rung(step=step, candidates=count) for step, count in pairs]


def test_rungs_by_hand() -> None:
    assert plan_rungs(12, 90, 3) == rungs((10, 12), (30, 4), (90, 2))
    assert plan_rungs(8, 90, 3) == rungs((30, 8), (90, 2))
    assert plan_rungs(9, 81, 3) == rungs((9, 9), (27, 3), (81, 2))
    assert plan_rungs(1, 7, 3) == rungs((7, 1))
    assert plan_rungs(12, 90, 3, rungs=1) == rungs((90, 12))
    assert plan_rungs(4, 90, 3, rungs=3) == rungs((10, 4), (30, 2), (90, 2))
    # Too few steps: no rung without a step of its own, and the first one has all candidates.
    assert plan_rungs(27, 3, 3) == rungs((1, 27), (3, 2))
    assert plan_rungs(27, 10, 1.1, rungs=4) == rungs((8, 27), (9, 22), (10, 20))
    short = [rung.step for rung in plan_rungs(40, 5, 1.2, rungs=12)]
    assert short == sorted(set(short))  # not only the first two are apart
    assert trained_steps(plan_rungs(12, 90, 3)) == 12 * 10 + 4 * 20 + 2 * 60


def test_a_budget_in_tokens_is_used_and_not_exceeded() -> None:
    found = longest(1000, 1000, 12, 3.0)
    assert trained_steps(plan_rungs(12, found, 3)) <= 1000
    assert trained_steps(plan_rungs(12, found + 1, 3)) > 1000
    assert longest(11, 11, 12, 3.0) == 0  # not even a step each


def test_a_forecast_covers_what_comes_and_is_sure_only_where_it_can_be() -> None:
    steps = np.arange(4, 40, 4)
    rng = np.random.default_rng(1)
    covered, widths = [], []
    for exponent in (0.3, 0.5, 1.0):
        for _ in range(20):
            curve = 0.8 + 3 * steps**-exponent + rng.normal(0, 0.01, len(steps))
            found = forecast(steps.tolist(), curve.tolist(), 200)
            assert found is not None
            covered.append(found.low <= 0.8 + 3 * 200**-exponent <= found.high)
            widths.append(found.high - found.low)
    assert np.mean(covered) >= 0.85
    # Farther and from fewer points it is less sure; a perfect curve leaves little doubt.
    few = forecast(steps[:5].tolist(), (0.8 + 3 * steps[:5] ** -0.5).tolist(), 200)
    noisy = 0.8 + 3 * steps[:5] ** -0.5 + rng.normal(0, 0.01, 5)
    less = forecast(steps[:5].tolist(), noisy.tolist(), 200)
    assert few is not None
    assert less is not None
    assert less.high - less.low > np.mean(widths)
    assert few.value == pytest.approx(0.8 + 3 * 200**-0.5, rel=0.03)


def test_forecasts_of_odd_curves() -> None:
    assert forecast([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], 9) is None  # too few
    flat = forecast([1, 2, 3, 4, 5], [2.0] * 5, 50)
    assert flat is not None
    assert flat.value == pytest.approx(2.0, abs=1e-3)
    rising = forecast([1, 2, 3, 4, 5], [1.0, 1.1, 1.2, 1.3, 1.4], 50)
    assert rising is not None
    assert rising.low <= 1.2 <= rising.high  # no trend upwards is assumed
    steep = forecast([1, 2, 3, 4, 5], [10.0, 5.0, 3.3, 2.5, 2.0], 1000)
    assert steep is not None
    assert 0 <= steep.low <= steep.value < 1  # never below 0
    same = forecast([1, 2, 3, 4, 5], [10.0, 5.0, 3.3, 2.5, 2.0], 1000)
    assert same == steep


def test_elimination_by_rank_and_by_forecast() -> None:
    values = {"a": 1.0, "b": 1.1, "c": 1.2, "d": 1.3}
    sure = Forecast(value=0.9, low=0.88, high=0.92)
    forecasts = {
        "a": sure,
        "b": Forecast(value=1.0, low=0.91, high=1.1),  # may still be the better one
        "c": Forecast(value=1.1, low=0.93, high=1.2),  # worse, whatever comes
        "d": Forecast(value=0.5, low=0.4, high=0.95),
    }
    out = eliminate(values, forecasts, 3)
    assert set(out) == {"c", "d"}
    assert out["d"] == "rank 4 of 4, the next rung takes 3"
    assert "at most 0.9200" in out["c"]
    assert "1.1000 (0.9300 to 1.2000)" in out["c"]
    # The best of a rung always stays, whatever is forecast.
    assert "a" not in eliminate(values, {"a": forecasts["c"], "b": sure}, 1)
    assert eliminate(values, {}, 9) == {}
