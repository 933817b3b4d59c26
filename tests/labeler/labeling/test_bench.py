"""`labeler bench`, with real vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.bench_results import read_bench_results
from tests.labeler.command_line import CommandLine


@pytest.mark.vllm
def test_figures_are_measured_once_and_are_speeds(
    labeler: CommandLine, teacher: Path, corpus: Path
) -> None:
    small = ("--engine", "transformers", "--k", "4", "--max-length", "64")
    assert labeler("label", corpus, "--model", teacher, "--out", "set", *small).code == 0
    workload = ("--sequences", "3", "--prompt-tokens", "16", "--new-tokens", "6", "--repeats", "3")
    given = ("bench", f"tiny={teacher}", "--labels", "set", "--out", "bench.json", *workload)
    done = labeler(*given)
    assert done.code == 0, done.err
    assert "tiny: measuring" in done.err
    (model,) = read_bench_results(Path("bench.json")).models
    assert model.score_tokens_per_s > 0
    assert model.generate_tokens_per_s > 0
    assert model.score_spread is not None
    assert model.generate_spread is not None
    assert f"{model.generate_tokens_per_s:.1f} ±{model.generate_spread / 2:.0%}" in done.out
    again = labeler(*given, "--json")
    assert "tiny: reusing its figures" in again.err
    assert again.json == json.loads(Path("bench.json").read_bytes())


@pytest.mark.parametrize("flag", ["--sequences", "--prompt-tokens", "--new-tokens", "--repeats"])
def test_workloads_without_work_are_refused(labeler: CommandLine, flag: str) -> None:
    done = labeler("bench", "x", "--labels", "set", flag, "0")
    assert done.code == 2
    assert flag in done.err + done.out
