"""Results of `labeler bench`: figures of rounds, and files of other versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas import SoftshardsError
from schemas.bench_results import (
    BenchModel,
    BenchResults,
    Latency,
    Measured,
    read_bench_results,
    speeds,
    write_bench_results,
)

FIRST = {
    "engine": {"name": "vllm 0.32.0", "sequences": 8},
    "models": [
        {
            "engine": "vllm 0.32.0",
            "load_seconds": 3.5,
            "score_tokens_per_s": 700.0,
            "score_spread": 0.1,
            "generate_tokens_per_s": 40.0,
            "generate_spread": 0.3,
            "name": "kd",
            "model": "runs/kd/final",
            "weights": "abc",
        },
        {"name": "ce", "model": "ce", "score_tokens_per_s": 1.0, "generate_tokens_per_s": 2.0},
    ],
}


def test_a_figure_is_the_median_of_its_rounds() -> None:
    figure = Measured.of([10.0, 14.0, 12.0])
    assert (figure.median, figure.rounds) == (12.0, (10.0, 14.0, 12.0))
    assert figure.spread == pytest.approx(4 / 12)
    assert not figure.is_stable
    assert Measured.of([10.0, 11.0, 12.0]).is_stable  # 2 / 11
    single = Measured.of([5.0])
    assert (single.spread, single.is_stable) == (None, False)


def test_models_are_compared_round_by_round() -> None:
    """A machine that is three times as slow in one round slows both: their ratio is stable."""
    teacher, student = Measured.of([30.0, 10.0, 30.0]), Measured.of([60.0, 21.0, 60.0])
    assert not teacher.is_stable
    ratio = student.relative_to(teacher)
    assert ratio.rounds == pytest.approx((2.0, 2.1, 2.0))
    assert (ratio.median, ratio.is_stable) == (2.0, True)
    old = Measured(median=60.0, spread=0.1)
    assert old.relative_to(teacher) == Measured(median=2.0)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    figure = Measured.of([1.0, 2.0])
    model = BenchModel(
        name="a",
        model=str(tmp_path / "a"),
        reading=figure,
        generating=figure,
        latencies=(
            Latency(concurrency=8, first_token_s=figure, last_token_s=figure, tokens_per_s=figure),
        ),
        peak_memory_bytes=5,
        joules_per_token=figure,
        energy_source="NVML",
    )
    results = BenchResults(engine={"name": "vllm", "sequences": 8}, models=(model,))
    write_bench_results(tmp_path / "bench.json", results)
    assert read_bench_results(tmp_path / "bench.json") == results
    assert model.latency(8) == model.latencies[0]
    assert model.latency(1) is None
    assert results.find("other", [tmp_path / "a"]) == model
    assert results.find("a", []) == model
    assert results.find("other", []) is None


def test_a_file_of_version_1_opens_without_rounds(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(FIRST))
    results = read_bench_results(path)
    kd, ce = results.models
    assert results.version == 1
    assert kd.reading == Measured(median=700.0, spread=0.1)
    assert (kd.reading.is_stable, kd.generating.is_stable) == (True, False)
    assert (kd.weights, kd.load_seconds, kd.latencies) == ("abc", 3.5, ())
    assert not ce.reading.is_stable  # nothing says so
    assert speeds(results, "ce", []) == (1.0, 2.0)
    assert speeds(results, "none", []) == (None, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (FIRST | {"version": 3}, "of version 3, this softshards reads up to 2"),
        (FIRST | {"version": "2"}, "of version 2, this softshards reads up to 2"),
        (FIRST | {"version": 2}, "cannot be read"),
        ({"models": [FIRST["models"][1] | {"generate_tokens_per_s": -218.0}]}, "cannot be read"),
        ({"models": [FIRST["models"][1] | {"generate_tokens_per_s": None}]}, "cannot be read"),
        ({}, "cannot be read"),
        ([], "cannot be read"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SoftshardsError, match=reason) as caught:
        read_bench_results(path)
    assert caught.value.path == path
    assert "labeler bench --out" in str(caught.value.hint)
