from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.trainer.report.reported import Reported
from trainer.report.gather_report import gather_report
from trainer.report.report_data import Verdict
from trainer.report.report_figures import spread
from trainer.report.ship_verdict import about, duration


def verdict_of(reported: Reported, **settings: object) -> Verdict:
    found = gather_report(reported.config(**settings))[0].verdict
    assert found is not None
    return found


def status(verdict: Verdict) -> list[str]:
    """Return the status of the checks: better than CE, kept, faster, paid back."""
    return [check.status for check in verdict.checks]


def test_a_student_that_is_not_better_than_tokens_alone_is_not_shipped(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("ce", ce=2.50, loss=("ce=1",))
    reported.add("kd", ce=2.499)
    found = verdict_of(reported, keep=0.5)
    assert (found.student, found.control, found.ship) == ("kd", "ce", "no")
    answer = found.answers[3]
    assert answer.status == "bad"
    assert answer.headline == "−0.0010"
    low, high = answer.interval.replace("−", "-").split(" to ")
    assert float(low) < 0 < float(high)
    assert "not clearly better than ce" in found.reason


def test_a_worse_student_says_so_and_a_better_one_is_good(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("ce", ce=2.5, loss=("ce=1", "router=0.01", "forward_kl=0"))
    reported.add("kd", ce=2.9)
    assert "predicts held-out text worse than ce" in verdict_of(reported).reason
    reported = Reported(tmp_path / "b")
    reported.add("ce", ce=2.5, loss=("ce=1",))
    reported.add("kd", ce=2.3)
    found = verdict_of(reported, keep=0.85)
    assert status(found)[:3] == ["good", "good", "good"]
    assert found.answers[0].headline == "92.3%"  # 0.6 of 0.65


def test_what_is_missing_leaves_it_undecided(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.3)
    found = verdict_of(reported, bench=False, keep=0.85)
    assert found.ship == "undecided"
    assert status(found) == ["unknown", "good", "unknown", "unknown"]
    assert "no run on tokens alone" in found.answers[3].meaning
    assert found.answers[1].headline == "50%"  # of the parameters
    assert found.answers[2].headline == "not known"


def test_the_control_starts_from_the_same_weights_and_has_the_nearest_tokens(
    tmp_path: Path,
) -> None:
    reported = Reported(tmp_path)
    reported.add("other start", ce=2.5, loss=("ce=1",), start="other")
    reported.add("far", ce=2.5, loss=("ce=1",), tokens=900_000)
    reported.add("near", ce=2.5, loss=("ce=1",), tokens=90_000)
    reported.add("worse", ce=2.3, kl=0.9)
    reported.add("kd", ce=2.3, kl=0.4)
    found = verdict_of(reported)
    assert (found.student, found.control) == ("kd", "near")
    assert any("Not at equal tokens: 100 k against 90.0 k" in d for d in found.answers[3].details)
    assert verdict_of(reported, student="worse").student == "worse"


def test_a_student_that_diverged_is_not_shipped(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("ce", ce=2.5, loss=("ce=1",))
    reported.add("kd", ce=math.nan, kl=math.nan)
    found = verdict_of(reported)
    assert found.ship == "no"
    assert "not finite" in found.reason


def test_a_slower_student_never_pays_back(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add("kd", ce=2.3, speed=90.0)
    found = verdict_of(reported)
    assert status(found)[2] == "bad"
    assert found.answers[1].headline == "0.90×"


def test_counts_and_times_are_short() -> None:
    assert [about(n) for n in (None, 12, 1234, 12_345, 187_012, 4.2e9)] == [
        *("–", "12", "1.23 k", "12.3 k", "187 k", "4.20 G"),
    ]
    assert [duration(s) for s in (None, 3.4, 600, 90_000)] == ["–", "3 s", "10 min", "25.0 h"]


def test_names_are_spread_in_order() -> None:
    assert spread([5.0, 0.0], 1.0) == [5.0, 0.0]
    places = spread([1.0, 1.1, 1.05, 9.0], 1.0)
    assert places[0] < places[2] < places[1] < places[3]
    assert places[2] - places[0] == pytest.approx(1.0)
    assert sum(places[:3]) / 3 == pytest.approx(1.05)
