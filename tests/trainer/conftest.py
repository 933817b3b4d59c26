from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.remote import CACHE_GB
from tests.faulty_store import FAULTS, Faults, faulty_store
from tests.objects import upload
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set, random_rows


@dataclass(frozen=True)
class World:
    """A teacher, a student with its tokenizer, and a label set; tests never write to them.

    With --out-in-store, `labels` is the URL of a copy of `folder` in the tests' S3 service.
    """

    teacher: Path
    student: Path
    labels: Path | str
    folder: Path
    rows: list[Row]
    vocab_size: int


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    teacher, student = root / "teacher", root / "student"
    vocab_size = make_tokenizer(teacher)
    make_model(teacher, vocab_size=vocab_size, seed=1)
    make_tokenizer(student)
    # Padded past the tokenizer, as many real vocabularies are.
    make_model(student, vocab_size=vocab_size + 20, layers=1, seed=2)
    rows = random_rows(48, vocab_size)
    folder = build_label_set(root / "labels", teacher, rows, vocab_size=vocab_size)
    labels: Path | str = folder
    if request.config.getoption("--out-in-store"):
        request.getfixturevalue("faulty_network")
        labels = upload(folder, "world")
    return World(teacher, student, labels, folder, rows, vocab_size)


@pytest.fixture(scope="session")
def faulty_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests' S3 service fails now and then, and nothing that was read from it is kept."""
    request.getfixturevalue("object_store")
    faults = Faults(dict.fromkeys(FAULTS, 0.01), dice=random.Random(11))
    with pytest.MonkeyPatch.context() as patch, faulty_store(faults):
        patch.setenv(CACHE_GB, "0")
        yield
    print(f"\n--out-in-store: {dict(sorted(faults.counts.items()))}")
