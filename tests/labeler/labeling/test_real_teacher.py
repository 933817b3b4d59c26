"""The real teacher, SmolLM2-135M-Instruct in float32: vLLM against transformers on real text."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from labeler.labeling.engines.engine import Labeled, Request
from labeler.labeling.engines.transformers_engine import TransformersEngine
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.spans import Span
from labeler.labeling.runs.label_units import load_engine
from labeler.labeling.teacher.teacher import open_teacher
from labeler.labeling.teacher.teacher_identity import local_weights, teacher_identity
from labeler.labelsets.verify.differences import compare_labels
from labeler.labelsets.verify.rescore import rescore_rows, teacher_path
from schemas import open_label_set, validate_label_set
from tests.labeler.conftest import Run
from tests.labeler.forging import relabel, reseal, rolled

pytestmark = [pytest.mark.vllm, pytest.mark.teacher]


def test_before_storage_labels_are_within_a_thousandth(real_teacher: Path, tmp_path: Path) -> None:
    """The engine's own float32 labels, in process: the same top 64 up to ties, within 1e-3."""
    opened = open_teacher(real_teacher, max_length=1024)
    config = LabelConfig(model=real_teacher, out=tmp_path, k=64)
    ids = opened.encode(topics["compound"])[:600]
    span = Span(start=1, stop=len(ids), kind="text")
    request = Request(index=0, sample=0, input_ids=ids, spans=(span,), seed=0)
    identity = teacher_identity(opened, config, local_weights(real_teacher, "full"))
    engine = load_engine(opened, config, identity, batched_tokens=256)
    (fast,) = engine.run([request])
    engine.close()
    reference = TransformersEngine(
        opened, dtype="float32", head_dtype="float32", k=64, sampling=None
    )
    (exact,) = reference.run([request])
    assert isinstance(fast, Labeled)
    assert isinstance(exact, Labeled)
    result = compare_labels(fast.labels, exact.labels, tolerance=1e-3)
    assert len(result.logprob) >= 512
    assert result.logprob.max() <= 1e-3
    assert result.other_ids.sum() == 0


def test_labels_are_the_teachers_and_shifted_ones_are_not(
    run_labeler: Run, real_teacher: Path, tmp_path: Path
) -> None:
    """Over 512 positions at k = 64: the same ids up to ties, logprobs within 1e-3 and rounding."""
    source = tmp_path / "articles.jsonl"
    rows = [{"id": name, "text": topics[name][:1600]} for name in ("with", "lambda", "yield")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "labels"
    run_labeler("label", source, "--model", real_teacher, "--out", out, "--k", "64")
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    result = rescore_rows(labels, 3, teacher_path(labels, None), tolerance=1e-3, seed=0)
    print(result)
    assert result.good, result.verdict
    assert result.positions >= 512
    assert result.other_ids == 0
    assert result.beyond_rounding <= 1e-3
    assert result.argmax_agreement[0] > 0.99
    moved = reseal(labels, lambda table: relabel(table, rolled(1)))
    shifted = rescore_rows(moved, 3, teacher_path(moved, None), tolerance=1e-3, seed=0)
    assert not shifted.good
    assert "shifted by -1" in shifted.verdict
