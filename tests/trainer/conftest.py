from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set, random_rows


@dataclass(frozen=True)
class World:
    """A teacher, a student with its tokenizer, and a label set; tests never write to them."""

    teacher: Path
    student: Path
    labels: Path
    rows: list[Row]
    vocab_size: int


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    teacher, student = root / "teacher", root / "student"
    vocab_size = make_tokenizer(teacher)
    make_model(teacher, vocab_size=vocab_size, seed=1)
    make_tokenizer(student)
    # Padded past the tokenizer, as many real vocabularies are.
    make_model(student, vocab_size=vocab_size + 20, layers=1, seed=2)
    rows = random_rows(48, vocab_size)
    labels = build_label_set(root / "labels", teacher, rows, vocab_size=vocab_size)
    return World(teacher, student, labels, rows, vocab_size)
