"""The real teacher, SmolLM2-135M-Instruct in float32: vLLM against transformers on real text."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from labeler.verification import rescore_rows
from schemas import open_label_set, validate_label_set
from tests.labeler.test_verification import shift_labels

pytestmark = [pytest.mark.vllm, pytest.mark.teacher]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_labels_are_the_teachers_and_shifted_ones_are_not(
    run_labeler: Run, real_teacher: Path, tmp_path: Path
) -> None:
    """Over 512 positions at k = 64: the same ids up to ties, logprobs within 1e-3 and rounding."""
    source = tmp_path / "articles.jsonl"
    rows = [{"id": name, "text": topics[name][:1600]} for name in ("with", "lambda", "yield")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "labels"
    done = run_labeler("label", source, "--model", real_teacher, "--out", out, "--k", "64")
    assert done.returncode == 0, done.stderr
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    result = rescore_rows(labels, 3, None, tolerance=1e-3, seed=0)
    print(result)
    assert result.good, result.verdict
    assert result.positions >= 512
    assert result.other_ids == 0
    assert result.beyond_rounding <= 1e-3
    assert result.argmax_agreement[0] > 0.99
    shifted = rescore_rows(shift_labels(labels, 1), 3, None, tolerance=1e-3, seed=0)
    assert not shifted.good
    assert "shifted by -1" in shifted.verdict
