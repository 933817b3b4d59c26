"""Real vLLM on the tiny teacher, through the command line, against the reference engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labeler.labelsets.verify.rescore import rescore_rows, teacher_path
from schemas import open_label_set, scan, validate_label_set
from tests.labeler.conftest import Run
from tests.tiny_model import TEXT

pytestmark = pytest.mark.vllm


def small(teacher: Path, out: Path, *more: object) -> list[object]:
    flags = ["--k", "8", "--max-length", "64", "--unit-labels", "300", "--max-sequences", "8"]
    return ["--model", teacher, "--out", out, *flags, *more]


def test_setup_leaves_no_broken_torchvision() -> None:
    """With a broken one installed, vLLM cannot load a model: scripts/setup removes it."""
    code = "import importlib.util as u\nif u.find_spec('torchvision'): import torchvision"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_labels_equal_the_reference(
    run_labeler: Run, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    run_labeler("label", corpus, *small(teacher, tmp_path / "vllm"))
    labels = open_label_set(tmp_path / "vllm")
    assert list(validate_label_set(labels)) == []
    assert labels.labels > 512
    result = rescore_rows(labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0)
    assert result.good, result.verdict
    assert result.positions == labels.labels
    again = run_labeler("label", corpus, *small(teacher, tmp_path / "vllm"), "--json")
    assert json.loads(again.stdout)["units_labeled"] == 0


def test_generations_are_labeled_like_scored_text(
    run_labeler: Run, teacher: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXT))
    sampled = ["--mode", "generate", "--max-tokens", "12", "--temperature", "1.3", "--top-p", "0.9"]
    more = [*sampled, "--samples", "2"]
    run_labeler("label", prompts, *small(teacher, tmp_path / "out", *more))
    labels = open_label_set(tmp_path / "out")
    assert list(validate_label_set(labels)) == []
    frame = scan(tmp_path / "out").collect()
    assert frame.height == 2 * len(TEXT)
    assert frame["generation"].n_unique() > len(TEXT)
    assert set(frame["spans"].list.get(0).struct.field("kind")) == {"answer"}
    result = rescore_rows(labels, labels.rows, teacher_path(labels, None), tolerance=1e-3, seed=0)
    assert result.good, result.verdict
