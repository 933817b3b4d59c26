"""Settings that do not go with the data: refused, or named before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schemas.errors import SoftshardsError
from tests.tiny_model import TEXT, make_model, make_tokenizer
from tests.trainer.build_label_set import build_label_set, random_rows
from tests.trainer.conftest import World
from tests.trainer.running import config
from trainer.train.loop import train

TINY = {"max_steps": 1, "packs_per_step": 1}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label set of a teacher with another tokenizer."""
    root = tmp_path_factory.mktemp("foreign")
    size = make_tokenizer(root / "teacher", 280, TEXT[:1])
    make_model(root / "teacher", vocab_size=size)
    rows = random_rows(8, size)
    return build_label_set(root / "labels", root / "teacher", rows, vocab_size=size)


@pytest.mark.parametrize("more", [{}, {"dry_run": True}, {"eval_every": 1}, {"keep_best": True}])
def test_held_out_labels_of_another_tokenizer_are_refused_before_anything_is_written(
    more: dict[str, bool], world: World, foreign: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SoftshardsError, match="ids mean different tokens") as caught:
        train(config(world, out, eval_labels=foreign, **TINY, **more))
    assert str(foreign) in str(caught.value)
    assert str(world.labels) in str(caught.value)
    assert not out.exists()


def test_held_out_labels_of_another_tokenizer_that_end_the_run(
    world: World, foreign: Path, tmp_path: Path
) -> None:
    with pytest.raises(SoftshardsError, match="ids mean different tokens"):
        train(config(world, tmp_path, eval_labels=foreign, patience=1, eval_every=1))


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


@pytest.mark.parametrize(("warmup", "warns"), [(0.5, False), (1, False), (2, True), (700, True)])
def test_a_warm_up_longer_than_the_run(
    warmup: float, warns: bool, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(world, tmp_path, warmup=warmup, **TINY))
    found = [line for line in warnings(capsys) if "--warmup" in line]
    assert len(found) == warns
    if warmup == 2:
        assert "after its 1 steps the learning rate is 50% of --lr" in found[0]


@pytest.mark.parametrize(("context", "warns"), [(16, True), (47, True), (256, False)])
def test_rows_longer_than_the_students_context(
    context: int, warns: bool, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "student"
    shutil.copytree(world.student, student)
    settings = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(
        json.dumps(settings | {"max_position_embeddings": context})
    )
    longest = max(len(row.input_ids) for row in world.rows)
    assert longest == 48
    train(config(world, tmp_path / "run", student=student, dry_run=True))
    found = [line for line in warnings(capsys) if "max_position_embeddings" in line]
    assert len(found) == warns
    assert all(f"longest row has {longest} tokens" in line for line in found)


@pytest.mark.parametrize(
    ("weights", "warns"),
    [
        ({"kind_weight": ("text=0", "answer=0", "thinking=0")}, True),
        ({"source_weight": ("*=0",)}, True),
        ({"kind_weight": ("thinking=0",)}, False),
        ({}, False),
    ],
)
def test_labels_that_all_weigh_nothing(
    weights: dict[str, tuple[str, ...]],
    warns: bool,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(config(world, tmp_path, max_steps=2, **weights))
    found = [line for line in warnings(capsys) if "every label of step 1 weighs 0" in line]
    assert len(found) == warns


def test_a_run_that_is_in_order_warns_of_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(world, tmp_path, eval_labels=world.labels, **TINY))
    assert warnings(capsys) == []


def test_held_out_sets_of_kept_positions_are_named(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = build_label_set(
        tmp_path / "kept", world.teacher, random_rows(4, world.vocab_size),
        vocab_size=world.vocab_size, keep_positions="top-share 0.2",
    )  # fmt: skip
    train(config(world, tmp_path / "run", eval_labels=labels, dry_run=True, **TINY))
    kept = "means over the labels that --keep-positions 'top-share 0.2' kept, not all"
    assert f"--eval-labels: figures are {kept}" in warnings(capsys)
