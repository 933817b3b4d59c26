"""An int8 export of a student runs in vLLM; the trainer asks the labeler's commands for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import build_label_set, random_rows
from trainer.export.export_config import ExportConfig
from trainer.export.export_record import ExportRecord
from trainer.export.export_student import export

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.usefixtures("quick_children")]


def test_an_int8_student_in_vllm(tmp_path: Path) -> None:
    """Every label is answered, and 8 bits cost little."""
    student = tmp_path / "student"
    vocab_size = make_tokenizer(student)
    make_model(student, vocab_size=vocab_size)
    rows = random_rows(6, vocab_size)
    labels = build_label_set(tmp_path / "labels", student, rows, vocab_size=vocab_size)
    config = ExportConfig(to="int8", out=tmp_path / "int8", labels=labels)
    assert export(student, config) == 0
    measured = ExportRecord.open(tmp_path / "int8").measured
    assert measured is not None
    assert measured.runtime.startswith("vLLM 0.")
    assert measured.exported.labels == measured.student.labels == sum(r.n_labels for r in rows)
    assert measured.student.agreement == 1  # it is its own teacher
    assert 0.5 < measured.exported.agreement <= 1  # a random model's top tokens are nearly tied
    assert measured.exported.ce == pytest.approx(measured.student.ce, abs=0.05)
    assert measured.speed is not None
    assert measured.speed.generate_tokens_per_s > 0
