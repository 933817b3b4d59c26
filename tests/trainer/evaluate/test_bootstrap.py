"""Intervals cover the truth, and differences are paired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from schemas import SoftshardsError
from tests.trainer.conftest import World
from trainer.evaluate.bootstrap import REPLICATES, document_counts, from_text, interval, to_text
from trainer.evaluate.evaluate_config import EvaluateConfig
from trainer.evaluate.evaluate_models import measure_models
from trainer.evaluate.model_differences import differences
from trainer.evaluate.results import EvaluationResults, Metrics

TRIALS = 400


def test_intervals_cover_the_true_mean() -> None:
    """Documents of unequal length and difficulty; the truth is a ratio of expectations."""
    random = np.random.default_rng(0)
    truth = 1.5
    covered = 0
    for trial in range(TRIALS):
        lengths = random.integers(5, 200, 80)
        hardness = random.normal(truth, 0.4, 80)
        sums = lengths * hardness
        counts = document_counts([f"{trial}-{i}" for i in range(80)])
        found = interval((counts.T @ sums) / (counts.T @ lengths), 80)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / TRIALS <= 0.98  # binomial: 95 % is within 2.2 points


def test_replicates_are_those_of_the_document_whatever_the_pack() -> None:
    both = document_counts(["a", "b"])
    assert both.shape == (2, REPLICATES)
    assert (document_counts(["b"])[0] == both[1]).all()
    assert (both[0] != both[1]).any()
    assert both.mean() == pytest.approx(1, abs=0.15)
    assert both.var() == pytest.approx(1, abs=0.3)


def test_values_survive_the_file() -> None:
    values = np.array([0.1, np.nan, -3.5])
    np.testing.assert_allclose(from_text(to_text(values)), values, rtol=1e-6)
    with pytest.raises(ValueError, match=r"."):
        from_text("not base64!")


def test_differences_are_paired_and_name_the_better_model(world: World, tmp_path: Path) -> None:
    asked = EvaluateConfig(
        labels=world.labels, model=(world.student, world.teacher), out=tmp_path / "eval.json"
    )
    results, ((_, student), (_, teacher)) = measure_models(asked)
    assert results.models == [student, teacher]
    assert student.documents == len({row.id for row in world.rows})
    for name, (low, high) in student.intervals.items():
        value = student.figure(name)
        assert value is not None
        assert low <= value <= high
    found = differences(teacher, student)
    assert found["kl"].value == pytest.approx(teacher.all.kl - student.all.kl)
    assert found["kl"].interval.high < 0
    assert found["kl"].is_clear
    assert found["acceptance"].interval.low > 0
    itself = differences(student, student)["ce"]
    assert (itself.value, itself.interval.low, itself.interval.high) == (0, 0, 0)
    # Paired: the difference is known better than its two parts.
    width = found["ce"].interval.high - found["ce"].interval.low
    alone = sum(m.intervals["ce"][1] - m.intervals["ce"][0] for m in (student, teacher))
    assert width < alone


@pytest.mark.parametrize("damage", ["not base64!", "AAAA", ""])
def test_damaged_replicates_are_refused(world: World, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "eval.json"
    measure_models(EvaluateConfig(labels=world.labels, model=(world.student,), out=out))
    content = json.loads(out.read_text())
    content["models"][0]["replicates"]["kl"] = damage
    out.write_text(json.dumps(content))
    with pytest.raises(SoftshardsError, match="replicates"):
        EvaluationResults.open(out)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
def test_tokens_per_draft_equal_a_simulation(acceptance: float) -> None:
    random = np.random.default_rng(2)
    accepted = random.random((100_000, 4)) < acceptance
    tokens = 1 + np.cumprod(accepted, 1).sum(1)
    facts = dict.fromkeys(("ce", "ppl", "kl", "agreement", "ece", "teacher_ce", "teacher_ppl"), 0.0)
    metrics = Metrics(labels=1, acceptance=acceptance, **facts)
    assert metrics.drafted(4) == pytest.approx(tokens.mean(), rel=5e-3)
